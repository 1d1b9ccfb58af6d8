"""Correction of profiles after the fact, one rule a file: `CORRECTORS[name]`. Arrays only."""

from evenfield.correct.base import CORRECTORS, Corrector
from evenfield.correct.pipeline import (
    Pipeline,
    PipelineConfig,
    Step,
    apply,
    fit_pipeline,
    load,
    save,
)

__all__ = [
    "CORRECTORS",
    "Corrector",
    "Pipeline",
    "PipelineConfig",
    "Step",
    "apply",
    "fit_pipeline",
    "load",
    "save",
]
