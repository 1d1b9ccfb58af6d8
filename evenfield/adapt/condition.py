"""The rule that the model's own method has learned: `predictor.condition(context)`.

For ARM-CML and ARM-LL (Zhang et al., NeurIPS 2021, arXiv 2007.02931): a context vector of the
unit's images, or one step on a learned loss.
"""

from __future__ import annotations

import torch

from evenfield.adapt.base import ADAPTERS, Adapted, Adapter, checked, copy_of
from evenfield.nn.predictor import Predictor
from evenfield.types import Context


@ADAPTERS.register("condition")
class Condition(Adapter):
    """What the method was trained to do with a context.

    Fallback: for an empty context, and for a model whose method has no such rule, the source.
    """

    def fit(self, model: Predictor, context: Context) -> Adapted:
        """A model conditioned on the context."""
        checked(context)
        if not len(context.image):
            self.warn(context, "no image: the source is used")
            return Adapted(self, copy_of(model), model)
        with torch.inference_mode(False):
            conditioned = copy_of(model).condition(context)
        if type(conditioned).condition is Predictor.condition:
            self.warn(context, "the model's method has no rule of its own: the source is used")
        return Adapted(self, conditioned, model)
