"""Which parameters a part of a loss teaches."""

from torch import Tensor, nn

STUDENT = ("networks.student.", "networks.student_head.")
PROBE = {"predictor.head.weight", "predictor.head.bias"}


def reached(method: nn.Module, loss: Tensor) -> set[str]:
    """Names of the parameters to which the loss alone sends a gradient."""
    method.zero_grad()
    loss.backward(retain_graph=True)
    return {name for name, p in method.named_parameters() if p.grad is not None}
