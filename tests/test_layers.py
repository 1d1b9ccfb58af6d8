"""Fences: a room imports only the rooms below it, and siblings never import each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "evenfield"
LAYERS = [
    "errors",
    "types registry seeds progress environment files",
    "records",
    "config",
    "data nn",
    "methods adapt correct metrics",
    "train",
    "profile",
    "bench",
    "report",
    "api",
    "cli",
    "__init__ __main__",
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
SIBLINGS = {
    "methods",
    "adapt",
    "correct",
    "metrics",
    "sources",
}  # inside them only `base` is shared
LONE_RANDOM = {"seeds.py"}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """The modules of the package that a file imports, as `room.module`, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} relative import"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("evenfield.") and name != "evenfield.__version__":
                yield node.lineno, name.removeprefix("evenfield.")


def test_imports_point_to_the_ground() -> None:
    wrong, seen = [], 0
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        for line, name in imported(path):
            there, *rest = name.split(".")
            seen += 1
            if there == parts[0]:
                folder = parts[-2] if len(parts) > 1 else ""
                inside = rest[1:] if folder == "sources" and rest[:1] == ["sources"] else rest
                is_file = inside and (path.parent / f"{inside[0]}.py").exists()
                foreign = is_file and inside[0] != "base"
                if folder in SIBLINGS and parts[-1] != "__init__" and foreign:
                    wrong.append(f"{path}:{line} {parts[-1]} -> {name}")
            elif LEVEL[there] >= LEVEL[parts[0]]:
                wrong.append(f"{path}:{line} {parts[0]} -> {name}")
    assert seen
    assert not wrong


def calls(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def test_nothing_is_random_without_a_generator_of_seeds() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        if path.name in LONE_RANDOM:
            continue
        for line, name in calls(path):
            made = name in {"torch.Generator", "np.random.default_rng", "np.random.Generator"}
            numpy_global = name.startswith("np.random.") and name != "np.random.Generator"
            if made or numpy_global:
                wrong.append(f"{path}:{line} {name}")
        if "import random\n" in path.read_text():
            wrong.append(f"{path} import random")
    assert not wrong


def test_weights_are_read_without_pickle_and_only_the_cli_prints() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name == "torch.load" and keywords.get("weights_only") != "True":
                wrong.append(f"{path}:{node.lineno} torch.load")
            if name == "np.load" and keywords.get("allow_pickle", "False") != "False":
                wrong.append(f"{path}:{node.lineno} np.load")
            if name == "print" and path.name != "cli.py":
                wrong.append(f"{path}:{node.lineno} print")
            if name.startswith("pickle."):
                wrong.append(f"{path}:{node.lineno} {name}")
    assert not wrong
