"""Named grids. Each is a function that returns a full configuration and says what it asks."""

from collections.abc import Callable

from evenfield.bench.grid import GridConfig
from evenfield.bench.presets.adaptation import ADAPTATION

PRESETS: dict[str, Callable[[], GridConfig]] = {**ADAPTATION}
