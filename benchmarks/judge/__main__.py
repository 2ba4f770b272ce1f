"""The judge's own benchmark: small scored models of many kinds, damaged in many ways.

    python -m benchmarks.judge train [NAME ...]             # in an environment with requirements.txt
    python -m benchmarks.judge scores [NAME ...]            # writes models/scores.json again
    python -m benchmarks.judge damage SCRATCH [NAME ...]    # variants and what they lose
    python -m benchmarks.judge verdicts SCRATCH [NAME ...]  # what the judge says of each
    python -m benchmarks.judge recipes SCRATCH [NAME ...] [--recipe default small fast]
    python -m benchmarks.judge table SCRATCH                # Markdown: counts, a family left out, slopes, recipes
    python -m benchmarks.judge pairs SCRATCH                # Markdown: every pair

All but ``train`` run in the project's own environment (``damage`` wants the extra "bench" too), from the
repository's root. SCRATCH keeps units by content, so that what did not change is not run again; verdicts always are.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # read once, when numpy and torch are loaded
    os.environ.setdefault(variable, "1")

from benchmarks.judge import catalogue, judging, steps, tables  # noqa: E402  # after the threads are set


def in_processes(work: Callable[[str], None], names: list[str], count: int) -> None:
    """Do the work for all names, ``count`` at a time."""
    if count == 1:
        for name in names:
            work(name)
        return
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        list(pool.map(work, names))


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judge", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=["train", "scores", "damage", "verdicts", "recipes", "table", "pairs"])
    parser.add_argument("arguments", nargs="*", metavar="SCRATCH / NAME")
    parser.add_argument("--names", nargs="+", default=[], help="kinds of model; all of them by default")
    parser.add_argument("--recipe", nargs="+", default=["default", "small", "fast"])
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    given = [*options.arguments, *options.names]
    if options.command == "train":
        in_processes(steps.train, catalogue.names(given), 1)
        return
    if options.command == "scores":
        steps.write_scores(catalogue.trained(given))
        return
    if not given:
        parser.error(f"{options.command} needs a folder for its results")
    scratch = Path(given[0]).resolve()
    if options.command == "table":
        print(tables.text(scratch, judging.limit()), end="")
        return
    if options.command == "pairs":
        print(tables.every_pair(list(tables.pairs(scratch))))
        return
    work: dict[str, Callable[[str], None]] = {
        "damage": functools.partial(steps.make_damage, scratch=scratch),
        "verdicts": functools.partial(steps.make_verdicts, scratch=scratch),
        "recipes": functools.partial(steps.make_recipes, scratch=scratch, wanted=options.recipe),
    }
    in_processes(work[options.command], catalogue.trained(given[1:]), options.processes)


if __name__ == "__main__":
    main()
