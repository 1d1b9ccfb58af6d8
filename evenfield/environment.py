"""What the machine offers, and the combinations of packages that are known to break."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version

PAIRS = {"2.13": "0.28", "2.12": "0.27", "2.11": "0.26"}
"""torch release: the torchvision release that is built for it."""


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def examine() -> list[tuple[str, str, str]]:
    """(what, value, advice) for everything that decides speed or breaks imports."""
    import torch

    from evenfield import __version__

    found = [
        ("evenfield", __version__, ""),
        ("python", platform.python_version(), ""),
        ("torch", torch.__version__, ""),
        ("cores", str(os.cpu_count()), ""),
    ]
    if torch.cuda.is_available():
        found.append(("gpu", torch.cuda.get_device_name(0), ""))
    else:
        found.append(("gpu", "none", ""))
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    found.append(("bfloat16 on this processor", "yes" if bf16 else "no", ""))
    found.append(_torchvision(torch.__version__))
    for package in ("numpy", "pandas", "pyarrow", "tifffile", "imagecodecs", "scikit-learn"):
        found.append((package, version(package), ""))
    return found


def _torchvision(torch_version: str) -> tuple[str, str, str]:
    """Torchvision is not needed; a build for another torch breaks packages that import it."""
    if importlib.util.find_spec("torchvision") is None:
        return ("torchvision", "absent (not needed)", "")
    try:
        there = version("torchvision")
    except PackageNotFoundError:
        there = "unknown"
    release = ".".join(torch_version.split(".")[:2])
    fit = PAIRS.get(release)
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        advice = f"it does not import beside torch {torch_version} ({error}); " + (
            f"install torchvision {fit} built for the same device, or remove it"
            if fit
            else "install the release that is paired with this torch, or remove it"
        )
        return ("torchvision", there, advice)
    return ("torchvision", there, "")
