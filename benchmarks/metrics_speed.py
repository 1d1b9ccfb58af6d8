"""What do the profile metrics cost against copairs, scib-metrics and scikit-learn?

    python benchmarks/metrics_speed.py [--only map|mixing|large|memory] [--wells 5000] ...

Each comparison runs in turns in one process after one warm-up round, and prints one line of JSON
with the ratio of the times (ours / theirs). Peers that are not installed are left out and named.

    map      mean average precision of all wells against all others, null and p-values included
    mixing   the table of mixing and biology of 5 embeddings (the same members on both sides)
    large    silhouette of labels, and 90 nearest neighbours
    memory   mean average precision of --many wells: seconds and peak memory (run it alone)
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median

import numpy as np
import pandas as pd
from turns import in_turns, keep, ratio

from evenfield.errors import EvenfieldWarning
from evenfield.metrics.base import PROFILE_METRICS, evaluate_profiles
from evenfield.metrics.kernels.nearest import nearest
from evenfield.metrics.kernels.view import Columns
from evenfield.metrics.map import Question, average_precision, mean_average_precision
from evenfield.metrics.table import BATCH, BIOLOGY
from evenfield.seeds import numpy_generator
from evenfield.types import Profiles

REPLICATES = 8
TREATMENT = "Metadata_Treatment"
COLUMNS = Columns(control=None, well=None)
QUESTION = Question(pos_sameby=(TREATMENT,), neg_diffby=(TREATMENT,))


def wells(num: int, d: int, *, num_labels: int = 20, num_batches: int = 5) -> Profiles:
    """Noisy replicates with a label and a batch effect, float32."""
    rng = numpy_generator(0, "metrics-speed", num, d)
    treatment, batch = np.arange(num) // REPLICATES, np.arange(num) % num_batches
    label = treatment % num_labels
    features = rng.normal(size=(num, d)).astype(np.float32)
    for code, size in ((treatment, 0.3), (label, 0.3), (batch, 0.2)):
        features += (rng.normal(size=(code.max() + 1, d)) * size).astype(np.float32)[code]
    table = pd.DataFrame(
        {
            TREATMENT: [f"t{i:05d}" for i in treatment],
            "Metadata_Compound": [f"t{i:05d}" for i in treatment],
            "Metadata_Label": [f"l{i:02d}" for i in label],
            "Metadata_Batch": [f"b{i}" for i in batch],
        }
    )
    return Profiles(features=features, names=tuple(f"f{i}" for i in range(d)), metadata=table)


def ours_map(profiles: Profiles, null_size: int) -> pd.DataFrame:
    table = average_precision(profiles, QUESTION, precision="single")
    return mean_average_precision(table, [TREATMENT], null_size=null_size)


def theirs_map(profiles: Profiles, null_size: int) -> pd.DataFrame:
    from copairs import map as copairs

    found = copairs.average_precision(
        profiles.metadata, profiles.features, [TREATMENT], [], [], [TREATMENT], progress_bar=False
    )
    with tempfile.TemporaryDirectory() as cache:  # an old cache would give the draws for nothing
        return copairs.mean_average_precision(
            found, [TREATMENT], null_size, 0.05, 0, progress_bar=False, cache_dir=cache
        )


def compare_map(given: argparse.Namespace) -> None:
    profiles = wells(given.wells, given.features)
    calls: dict[str, Callable[[], object]] = {"ours": lambda: ours_map(profiles, given.null_size)}
    values: dict[str, object] = {"wells": given.wells, "features": given.features}
    if find_spec("copairs"):
        calls["copairs"] = lambda: theirs_map(profiles, given.null_size)
        ours, theirs = ours_map(profiles, given.null_size), theirs_map(profiles, given.null_size)
        theirs = theirs.set_index(TREATMENT).loc[ours[TREATMENT]]
        column = "mean_average_precision"
        gap = np.abs(ours[column].to_numpy() - theirs[column].to_numpy()).max()
        values["largest_difference"] = float(gap)
    report("metrics_map", values, calls, given, peers=["copairs"])


def compare_mixing(given: argparse.Namespace) -> None:
    whole = wells(given.table_rows, 50, num_labels=8)
    rng = numpy_generator(0, "embeddings")
    embeddings = [
        whole.features + rng.normal(size=whole.features.shape).astype(np.float32) * i
        for i in range(given.embeddings)
    ]
    by_label = PROFILE_METRICS["kbet"]
    members = [name for name in (*BIOLOGY, *BATCH) if name != "kbet"]

    def ours() -> object:
        return [
            evaluate_profiles(
                whole.with_features(features),
                [*members, by_label(by_label.Config(within="label"), columns=COLUMNS)],
                COLUMNS,
            )
            for features in embeddings
        ]

    def theirs() -> object:
        from anndata import AnnData
        from scib_metrics.benchmark import Benchmarker, BioConservation

        data = AnnData(whole.features, obs=whole.metadata.astype("category"))
        for i, features in enumerate(embeddings):
            data.obsm[f"e{i}"] = features
        bench = Benchmarker(
            data,
            batch_key="Metadata_Batch",
            label_key="Metadata_Label",
            embedding_obsm_keys=[f"e{i}" for i in range(len(embeddings))],
            bio_conservation_metrics=BioConservation(isolated_labels=False),
            progress_bar=False,
        )
        bench.benchmark()
        return bench.get_results(min_max_scale=False)

    calls: dict[str, Callable[[], object]] = {"ours": ours}
    if find_spec("scib_metrics"):
        calls["scib-metrics"] = theirs
    values = {"rows": given.table_rows, "embeddings": given.embeddings, "features": 50}
    report("metrics_mixing", values, calls, given, peers=["scib-metrics"])


def compare_large(given: argparse.Namespace) -> None:
    profiles = wells(given.rows, given.features)
    x, label = (
        profiles.features,
        np.unique(profiles.metadata["Metadata_Label"], return_inverse=True)[1],
    )
    metric = PROFILE_METRICS["silhouette-label"]
    silhouette = metric(metric.Config(distance="euclidean"), columns=COLUMNS)
    calls: dict[str, Callable[[], object]] = {"ours": lambda: silhouette(profiles)}
    if find_spec("scib_metrics"):
        import scib_metrics

        calls["scib-metrics"] = lambda: scib_metrics.silhouette_label(x, label)
    from sklearn.metrics import silhouette_score

    calls["scikit-learn"] = lambda: silhouette_score(x, label)
    values = {"rows": given.rows, "features": given.features}
    report("metrics_silhouette", values, calls, given, peers=["scib-metrics", "scikit-learn"])

    k = min(90, given.rows - 1)
    calls = {"ours": lambda: nearest(x, k, distance="euclidean")}
    if find_spec("scib_metrics"):
        from scib_metrics.nearest_neighbors import pynndescent

        calls["scib-metrics"] = lambda: pynndescent(x, n_neighbors=k + 1)
    from sklearn.neighbors import NearestNeighbors

    calls["scikit-learn"] = lambda: (
        NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x).kneighbors()
    )
    values = {"rows": given.rows, "features": given.features, "neighbours": k}
    report("metrics_neighbours", values, calls, given, peers=["scib-metrics", "scikit-learn"])


def measure_memory(given: argparse.Namespace) -> None:
    profiles = wells(given.many, given.features)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    ours_map(profiles, given.null_size)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = {
        "wells": given.many,
        "features": given.features,
        "table_mib": profiles.features.nbytes // 2**20,
        "before_mib": before // 2**10,
        "peak_mib": peak // 2**10,
    }
    if given.note:
        values["note"] = given.note
    print(json.dumps({"benchmark": "metrics_memory", **values, "seconds": round(seconds, 2)}))
    if not given.dry:
        keep("metrics_memory", values, {"ours": [seconds]})


def report(
    name: str,
    values: dict[str, object],
    calls: dict[str, Callable[[], object]],
    given: argparse.Namespace,
    *,
    peers: list[str],
) -> None:
    """Run in turns, print one line of JSON, keep it unless the run is dry."""
    times = in_turns(calls, rounds=given.rounds)
    line = {
        **values,
        "ratios": {peer: round(ratio(times, "ours", peer), 5) for peer in peers if peer in times},
        "absent": [peer for peer in peers if peer not in times],
    }
    if given.note:
        line["note"] = given.note
    seconds = {call: round(median(found), 3) for call, found in times.items()}
    print(json.dumps({"benchmark": name, **line, "seconds": seconds}), flush=True)
    if not given.dry:
        keep(name, line, times)


PARTS = {
    "map": compare_map,
    "mixing": compare_mixing,
    "large": compare_large,
    "memory": measure_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=PARTS, help="one part (default: all but memory)")
    parser.add_argument("--wells", type=int, default=5000, help="of the part `map`")
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--null-size", type=int, default=10_000)
    parser.add_argument("--table-rows", type=int, default=640, help="of the part `mixing`")
    parser.add_argument("--embeddings", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20_000, help="of the part `large`")
    parser.add_argument("--many", type=int, default=50_000, help="of the part `memory`")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--note", default="", help="what a reader of the record should know")
    parser.add_argument("--dry", action="store_true", help="print only, append no record")
    given = parser.parse_args()
    warnings.simplefilter("ignore", EvenfieldWarning)
    for part in [given.only] if given.only else [name for name in PARTS if name != "memory"]:
        PARTS[part](given)


if __name__ == "__main__":
    main()
