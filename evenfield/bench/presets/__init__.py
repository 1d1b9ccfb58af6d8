"""Named grids. Each is a function that returns a full configuration and says what it asks."""

from collections.abc import Callable

from evenfield.bench.grid import GridConfig
from evenfield.bench.presets.adaptation import ADAPTATION
from evenfield.bench.presets.cdcl import CDCL
from evenfield.bench.presets.robust import ROBUST
from evenfield.bench.presets.wilds import WILDS

PRESETS: dict[str, Callable[[], GridConfig]] = {
    **ADAPTATION,
    **ROBUST,
    **WILDS,
    **CDCL,
}
