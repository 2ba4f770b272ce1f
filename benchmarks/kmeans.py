"""One-dimensional k-means: ``fit_codebook`` beside scikit-learn's KMeans(n_init=1), in the same run.

    python benchmarks/kmeans.py                 # 10 million values, k = 16 and 256
    python benchmarks/kmeans.py --size 1000000

scikit-learn takes minutes at full size. A ratio of inertia below 1 means that fit_codebook is nearer.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from onnxcomp.numerics.quantizers.codebook import fit_codebook

Array = NDArray[Any]


def inertia(values: Array, levels: Array) -> float:
    """The squared error of the values around their nearest levels, float64."""
    exact = np.sort(levels.astype(np.float64))
    total = 0.0
    for start in range(0, values.size, 2**20):
        part = values[start : start + 2**20].astype(np.float64)
        codes = np.searchsorted((exact[1:] + exact[:-1]) / 2, part)
        total += float(np.square(part - exact[codes]).sum())
    return total


def compare(values: Array, k: int, distribution: str) -> str:
    """One row of the table: seconds of both, their ratio, and the ratio of inertia."""
    start = time.perf_counter()
    levels = fit_codebook(values, k)
    own_seconds = time.perf_counter() - start
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = KMeans(k, n_init=1, random_state=0).fit(values[:, None])
    peer_seconds = time.perf_counter() - start
    ratio = inertia(values, levels) / inertia(values, model.cluster_centers_[:, 0])
    return (
        f"{distribution:10s} {values.size:>10,} {k:>4} {own_seconds:>10.3f} {peer_seconds:>12.2f} "
        f"{peer_seconds / own_seconds:>8.0f}x {ratio:>9.5f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=10_000_000, help="how many values")
    parser.add_argument("--k", type=int, nargs="+", default=[16, 256], help="how many levels")
    parser.add_argument("--distribution", nargs="+", default=["normal"], choices=["normal", "laplace"])
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    print(f"{'values':10s} {'n':>10} {'k':>4} {'onnxcomp s':>10} {'sklearn s':>12} {'faster':>9} {'inertia':>9}")
    fit_codebook(np.arange(1000, dtype=np.float32), 4)
    for distribution in chosen.distribution:
        draw = getattr(np.random.default_rng(chosen.seed), "laplace" if distribution == "laplace" else "normal")
        values = draw(0, 0.05, chosen.size).astype(np.float32)
        for k in chosen.k:
            print(compare(values, k, distribution), flush=True)


if __name__ == "__main__":
    main()
