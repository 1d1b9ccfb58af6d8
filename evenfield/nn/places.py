"""Where inside a backbone features may be looked at or changed, by the same names everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from evenfield.errors import InputError


def places(backbone: nn.Module) -> dict[str, nn.Module]:
    """The module behind which each place lies: `stem`, then the stages `1`, `2`, ...

    A backbone names them in its attribute `places` (place to submodule).

    Raises:
        InputError: The backbone names none.
    """
    named = getattr(backbone, "places", None)
    if named is None:
        raise InputError(
            f"the backbone {type(backbone).__name__} does not say where its stages end",
            fix="give it an attribute `places`, e.g. {'stem': 'maxpool', '1': 'layer1'}",
        )
    return {place: backbone.get_submodule(path) for place, path in named.items()}


@contextmanager
def changing(
    backbone: nn.Module, change: Mapping[str, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Inside the block, the features at each named place go through its function.

    Args:
        backbone: One of ours, or any module with the attribute `places`.
        change: Place to a function of the features (n, c, h, w) that keeps their shape.

    Raises:
        InputError: The backbone has no such place.
    """
    known = places(backbone)
    unknown = sorted(set(change) - set(known))
    if unknown:
        raise InputError(
            f"{type(backbone).__name__} has no place {unknown[0]!r}",
            fix=f"choose from: {', '.join(known)}",
        )
    hooks = [
        known[place].register_forward_hook(lambda _, __, x, f=function: f(x))
        for place, function in change.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def resuming(backbone: nn.Module, place: str, x: Tensor) -> Iterator[None]:
    """Inside the block the features at a place are `x`, whatever the image; nothing there is run.

    For a second pass of one batch, of which all that lies before the place is known. What comes
    before the module of the place is still run, in vain.
    """
    module = places(backbone)[place]
    before = module.__dict__.get("forward")
    try:
        module.forward = lambda *_: x
        yield
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before
