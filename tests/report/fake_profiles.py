"""Tables of wells with a known batch effect: two batches of two plates, six treatments."""

from dataclasses import replace

import numpy as np
import pandas as pd

from evenfield.seeds import numpy_generator
from evenfield.types import Profiles

EVIL = "taxol</script><script>document.documentElement.dataset.error='evil'</script>"
NAMES = tuple(f"f{i}" for i in range(8))


def tables(*, crossed: bool = True, seed: int = 0) -> dict[str, Profiles]:
    """`before` has plate offsets as large as the treatments' effects, `clean` has none of them, and
    `noise` knows nothing.

    Args:
        crossed: Whether every batch holds every treatment.
        seed: Of all that is drawn.
    """
    rng = numpy_generator(seed, "fake-profiles")
    effects = 4 * rng.normal(size=(6, 8))
    effects[1::2] = effects[::2] + 1.5 * rng.normal(size=(3, 8))  # two compounds of one label
    rows, signal = [], []
    for plate in range(4):
        batch = plate // 2
        for number in range(24):
            is_control = number < 6
            treatment = (number - 6) % (6 if crossed else 3) + (0 if crossed else 3 * batch)
            rows.append(
                {
                    "Metadata_Batch": f"batch{batch}",
                    "Metadata_Plate": f"p{plate + 1}",
                    "Metadata_Well": f"{'ABCD'[number % 4]}{number // 4 + 1:02d}",
                    "Metadata_Compound": "DMSO" if is_control else f"c{treatment}",
                    "Metadata_Treatment": "DMSO" if is_control else _name(treatment),
                    "Metadata_Label": "" if is_control else f"kind & <b>{treatment // 2}</b>",
                    "Metadata_ControlType": "negcon" if is_control else "trt",
                    "Metadata_CellCount": int(rng.integers(90, 110)) // (8 if plate == 3 else 1),
                }
            )
            signal.append(np.zeros(8) if is_control else effects[treatment])
    metadata = pd.DataFrame(rows)
    clean = np.array(signal) + rng.normal(size=(len(rows), 8))
    offset = 4 * rng.normal(size=(4, 8))[np.repeat(np.arange(4), 24)]
    make = {"before": clean + offset, "clean": clean, "noise": rng.normal(size=clean.shape)}
    return {
        name: Profiles(features=x, names=NAMES, metadata=metadata.copy())
        for name, x in make.items()
    }


def _name(treatment: int) -> str:
    return EVIL if treatment == 0 else f"c{treatment}@1"


def with_columns(profiles: Profiles, **columns: object) -> Profiles:
    return replace(profiles, metadata=profiles.metadata.assign(**columns))
