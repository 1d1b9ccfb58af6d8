"""Correctors against the plain way and against other packages, in turns.

    python benchmarks/correct_speed.py [--rows 200000] [--features 1024] [--domains 50] [--rounds 1]

Each measurement is a process of its own that makes the same table (seeded), times `fit` and
`transform` (or the one call that others have), and tells its peak memory; ours and the other
alternate within a round. Prints one line of JSON for each pair:

tvn       TVN with CORAL by domain, against EFAAR's four steps with scikit-learn's StandardScaler
          and PCA and scipy's `fractional_matrix_power` (goal: at most 1/12 of the time)
combat    against inmoose where it is installed (goals: 1/8 of the time, 0.4 of the memory), else
          against scanpy and neuroCombat
harmony   on `--components` features, against harmonypy on one thread (goal: at most 2)

The mean absolute difference of the two answers stands beside each ratio. TVN agrees where each
domain has more controls than features (`--controls 0.34`); by default a sixth of the rows are
controls, as on usual plates, and ours shrinks the covariances, which EFAAR's steps do not.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from turns import keep

from evenfield.correct import CORRECTORS
from evenfield.seeds import numpy_generator
from evenfield.types import Profiles

PEERS = {"tvn": ["plain"], "combat": ["inmoose", "scanpy", "neuroCombat"], "harmony": ["harmonypy"]}
DOMAIN, CONTROL = "Metadata_Batch", "Metadata_ControlType"


def made_up(given: argparse.Namespace) -> Profiles:
    """Correlated features with an offset and a gain by domain, and clusters for Harmony."""
    d = given.components if given.task == "harmony" else given.features
    rng = numpy_generator(0, "correct speed")
    x = rng.standard_normal((given.rows, d), dtype=np.float32)
    x[:, : d // 2] += 0.5 * x[:, d // 2 : d // 2 * 2]
    code = np.sort(rng.integers(0, given.domains, given.rows))
    x *= np.exp(0.2 * rng.standard_normal((given.domains, d), dtype=np.float32))[code]
    x += 0.5 * rng.standard_normal((given.domains, d), dtype=np.float32)[code]
    kind = rng.integers(0, 30, given.rows)
    x += 2.0 * rng.standard_normal((30, d), dtype=np.float32)[kind]
    control = rng.random(given.rows) < given.controls
    metadata = pd.DataFrame(
        {
            DOMAIN: np.array([f"b{i}" for i in range(given.domains)], dtype=object)[code],
            CONTROL: np.where(control, "negcon", "trt"),
        }
    )
    return Profiles(features=x, names=tuple(f"f{i}" for i in range(d)), metadata=metadata)


def ours(task: str, table: Profiles) -> np.ndarray:
    settings = {"num_components": None} if task == "harmony" else {}
    return CORRECTORS[task](**settings).fit_transform(table).features


def plain(table: Profiles) -> np.ndarray:
    """EFAAR's steps as its code takes them, one after the other over the whole table."""
    from scipy.linalg import fractional_matrix_power
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    is_control = (table.metadata[CONTROL] == "negcon").to_numpy()
    e = StandardScaler().fit(table.features[is_control]).transform(table.features)
    e = PCA().fit(e[is_control]).transform(e)
    e = StandardScaler().fit(e[is_control]).transform(e)
    for domain in table.metadata[DOMAIN].unique():
        rows = (table.metadata[DOMAIN] == domain).to_numpy()
        source = np.cov(e[rows & is_control], rowvar=False, ddof=1) + 0.5 * np.eye(e.shape[1])
        e[rows] = np.matmul(e[rows], fractional_matrix_power(source, -0.5))
    return e


def inmoose(table: Profiles) -> np.ndarray:
    from inmoose.pycombat import pycombat_norm

    frame = pd.DataFrame(table.features.T)
    return np.asarray(pycombat_norm(frame, table.metadata[DOMAIN].tolist())).T


def scanpy(table: Profiles) -> np.ndarray:
    import anndata
    import scanpy

    obs = table.metadata.set_index(table.metadata.index.astype(str))
    return scanpy.pp.combat(anndata.AnnData(table.features, obs=obs), key=DOMAIN, inplace=False)


def neuro_combat(table: Profiles) -> np.ndarray:
    from neuroCombat import neuroCombat

    return neuroCombat(dat=table.features.T, covars=table.metadata, batch_col=DOMAIN)["data"].T


def harmonypy(table: Profiles) -> np.ndarray:
    from harmonypy import run_harmony

    found = run_harmony(table.features, table.metadata, DOMAIN, verbose=False, ncores=1).Z_corr
    return found if found.shape == table.features.shape else found.T


CALLS: dict[str, Callable[[Profiles], np.ndarray]] = {
    "plain": plain,
    "inmoose": inmoose,
    "scanpy": scanpy,
    "neuroCombat": neuro_combat,
    "harmonypy": harmonypy,
}


def child(given: argparse.Namespace) -> None:
    """One measurement: seconds, peak memory above the table's, and some answers for comparison."""
    warnings.simplefilter("ignore")
    small = argparse.Namespace(**{**vars(given), "rows": 600, "domains": 2, "features": 16})
    call = CALLS.get(given.child, lambda table: ours(given.task, table))
    with contextlib.redirect_stdout(io.StringIO()):
        call(made_up(small))  # imports and first calls are not what is measured
        table = made_up(given)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        answer = call(table)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.save(given.answer, np.asarray(answer[:: max(1, len(answer) // 500)], dtype=np.float32))
    # ru_maxrss is in KiB on Linux; the table itself is counted for both.
    print(json.dumps({"seconds": seconds, "gib": peak / 2**20, "table_gib": before / 2**20}))


def measured(given: argparse.Namespace, task: str, name: str, answer: Path) -> dict[str, float]:
    told = [f"--{key}={getattr(given, key)}" for key in
            ("rows", "features", "components", "domains", "controls")]  # fmt: skip
    run = [sys.executable, __file__, *told, f"--task={task}", f"--child={name}"]
    done = subprocess.run([*run, f"--answer={answer}"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(given: argparse.Namespace, task: str, peer: str) -> None:
    ran: dict[str, list[dict[str, float]]] = {"evenfield": [], peer: []}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.npy" for name in ran}
        for _ in range(given.rounds):
            for name, runs in ran.items():
                runs.append(measured(given, task, name, paths[name]))
        a, b = (np.load(path) for path in paths.values())
    times = {name: [run["seconds"] for run in runs] for name, runs in ran.items()}
    memory = {name: median(run["gib"] for run in runs) for name, runs in ran.items()}
    ratios = [x / y for x, y in zip(times["evenfield"], times[peer], strict=True)]
    # Signs of components are free.
    differ = np.abs(np.abs(a) - np.abs(b)) if task == "tvn" else np.abs(a - b)
    line = {
        "task": task,
        "against": peer,
        "time_ratio": median(ratios),
        "memory_ratio": memory["evenfield"] / memory[peer],
        "gib": {name: round(value, 3) for name, value in memory.items()},
        "mean_difference": float(differ.mean()),
        "rows": given.rows,
        "features": given.components if task == "harmony" else given.features,
        "domains": given.domains,
        "controls": given.controls,
    }
    if given.note:
        line["note"] = given.note
    seconds = {name: round(median(values), 3) for name, values in times.items()}
    print(json.dumps(line | {"seconds": seconds}), flush=True)
    if given.keep:
        keep("correct_speed", line, times)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of correctors against others.")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--components", type=int, default=50, help="features for Harmony")
    parser.add_argument("--domains", type=int, default=50)
    parser.add_argument("--controls", type=float, default=1 / 6, help="share of control rows")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--task", choices=list(PEERS), help="one pair only")
    parser.add_argument("--note", default="", help="what a reader of the record should know")
    parser.add_argument("--keep", action="store_true", help="append to benchmarks/records")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given)
        return
    for task in [given.task] if given.task else PEERS:
        for peer in PEERS[task]:
            if peer == "plain" or importlib.util.find_spec(peer):
                compare(given, task, peer)


if __name__ == "__main__":
    main()
