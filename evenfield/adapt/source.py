"""No adaptation: the model as it was trained, with the running statistics of its training.

"BN-0" of Schneider et al., NeurIPS 2020 (arXiv 2006.16971). The floor of every table.
"""

from __future__ import annotations

from evenfield.adapt.base import ADAPTERS, Adapted, Adapter, checked, copy_of
from evenfield.nn.predictor import Predictor
from evenfield.types import Context


@ADAPTERS.register("source")
class Source(Adapter):
    """Ignores the context."""

    uses_controls = False
    uses_perturbed = False

    def fit(self, model: Predictor, context: Context) -> Adapted:
        """A copy of the source in eval mode."""
        checked(context)
        return Adapted(self, copy_of(model), model)
