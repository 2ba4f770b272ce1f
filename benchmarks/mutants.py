"""Change the code that decides in one place at a time, and name the changes that no test minds.

    python -m benchmarks.mutants [--files PREFIX ...] [--sample 8] [--seed 0] [--again]

`make mutants` runs it, docs/mutation.md says what came of it. cosmic-ray makes the mutants and keeps what became of
each in a session of its own below build/mutants, so that a run goes on where the last one was stopped. Mutated is a
copy of the package; what is mutated, and which tests are to notice it, stands in pyproject.toml.
"""

from __future__ import annotations

import argparse
import ast
import collections
import compileall
import hashlib
import os
import py_compile
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkItem, WorkResult

HERE = Path(__file__).resolve().parent.parent
BUILD = HERE / "build" / "mutants"
TREE, SESSIONS = BUILD / "tree", BUILD / "sessions"
PACKAGE = "onnxcomp"
PYTEST = ("-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider")
SLOWER = 5.0  # times what the tests take on the code as it is, and MARGIN_S more: then a mutant is stuck, and killed
MARGIN_S = 60.0

Position = tuple[int, int]  # row from 1, column from 0


def main() -> int:
    arguments = parsed()
    tests = tomllib.loads((HERE / "pyproject.toml").read_text())["tool"]["mutants"]["tests"]
    make_tree()
    os.chdir(TREE)
    os.environ["PYTHONPATH"] = str(TREE)  # the copy goes before what is installed, in started processes as well
    SESSIONS.mkdir(parents=True, exist_ok=True)
    for path in mutated_files(tests, arguments.files):
        with use_db(SESSIONS / session_name(path)) as session:
            run_file(path, tests_of(path, tests), session, arguments)
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Mutate the code that decides, and name the mutants that survive.")
    parser.add_argument("--files", nargs="*", default=[], help="paths, or how they begin; all that are configured")
    parser.add_argument("--sample", type=int, default=8, help="mutants of a file; a larger sample holds the smaller")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="test once more what survived: tests may have been added")
    return parser.parse_args()


def make_tree() -> None:
    """A copy of the package and the tests as they are now, in a folder where all else is linked.

    The package's bytecode is checked by the source's content: a mutant may have the size and the second of another.
    """
    shutil.rmtree(TREE, ignore_errors=True)
    TREE.mkdir(parents=True)
    for each in (PACKAGE, "tests"):
        shutil.copytree(HERE / each, TREE / each, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(TREE / PACKAGE, quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    for each in ("passes", "models", "docs", "benchmarks", "pyproject.toml", "README.md"):
        (TREE / each).symlink_to(HERE / each)


def mutated_files(tests: Mapping[str, Sequence[str]], asked: Sequence[str]) -> list[str]:
    """The files below the configured paths that are asked for."""
    below = {each for path in tests for each in ([Path(path)] if path.endswith(".py") else Path(path).rglob("*.py"))}
    names = sorted(each.as_posix() for each in below if each.name != "__init__.py")
    return [each for each in names if not asked or each.startswith(tuple(asked))]


def tests_of(path: str, tests: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """The file's own, which are the quickest to notice, and those of the longest configured path that it is below."""
    below = Path(path).relative_to(PACKAGE)
    own = Path("tests", below.parent, f"test_{below.name}")
    configured = tests[max((each for each in tests if path.startswith(each)), key=len)]
    return [own.as_posix(), *configured] if own.exists() else configured


def session_name(path: str) -> str:
    """A file that is changed has other mutants, and so a session of its own."""
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return f"{path.removesuffix('.py').replace('/', '.')}-{digest[:8]}.sqlite"


def run_file(path: str, tests: Sequence[str], session: WorkDB, arguments: argparse.Namespace) -> None:
    """Test what of a file's sample has no result yet, and print the score and the survivors."""
    if not session.num_work_items:
        init([Path(path)], session, {})
    sample = sampled(session.work_items, Path(path).read_text(), size=arguments.sample, seed=f"{arguments.seed} {path}")
    results = dict(session.results)
    waiting = [each for each in sample if not is_done(results.get(each.job_id), again=arguments.again)]
    command = shlex.join([sys.executable, *PYTEST, *tests])
    timeout = 0.0 if not waiting else MARGIN_S + SLOWER * timed(command)
    for each in waiting:
        results[each.job_id] = mutate_and_test(each.mutations, command, timeout)
        session.set_result(each.job_id, results[each.job_id])
    print_score(path, [(each, results[each.job_id]) for each in sample], len(session.work_items))


def is_done(result: WorkResult | None, *, again: bool) -> bool:
    return result is not None and not (again and result.test_outcome is TestOutcome.SURVIVED)


def timed(command: str) -> float:
    """Seconds that the tests take on the code as it is. Raises SystemExit where they fail: then no mutant is tested."""
    started = time.monotonic()
    run = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"the tests fail on the code as it is:\n{command}\n{run.stdout}{run.stderr}")
    return time.monotonic() - started


def sampled(items: Sequence[WorkItem], source: str, *, size: int, seed: str) -> list[WorkItem]:
    """Some of the mutants by a seed, one of each place before a second of any: an operator has a dozen, a name none."""
    idle = list(annotations(source))
    live = [each for each in items if is_told(each, idle)]
    live.sort(key=lambda each: hashlib.sha256(f"{seed} {name_of(each)}".encode()).digest())
    seen: collections.Counter[tuple[Position, Position]] = collections.Counter()
    turns = []
    for each in live:
        turns.append(seen[place(each)])
        seen[place(each)] += 1
    return [live[index] for index in sorted(range(len(live)), key=turns.__getitem__)][:size]


def is_told(item: WorkItem, idle: Sequence[tuple[Position, Position]]) -> bool:
    """Whether a test could tell: nothing evaluates annotations, and strings that are equal are mostly the same."""
    is_identity = item.mutations[0].operator_name.endswith(("_Eq_Is", "_NotEq_IsNot"))
    return not is_identity and not any(start <= place(item)[0] < end for start, end in idle)


def name_of(item: WorkItem) -> str:
    return f"{item.mutations[0].operator_name.removeprefix('core/')} {item.mutations[0].occurrence}"


def place(item: WorkItem) -> tuple[Position, Position]:
    return item.mutations[0].start_pos, item.mutations[0].end_pos


def annotations(source: str) -> Iterator[tuple[Position, Position]]:
    """Where the annotations of a source stand."""
    for node in ast.walk(ast.parse(source)):
        for each in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(each, ast.expr):
                yield (each.lineno, each.col_offset), (each.end_lineno or each.lineno, each.end_col_offset or 0)


def print_score(path: str, tested: Sequence[tuple[WorkItem, WorkResult]], of_all: int) -> None:
    """A row of a table: mutants of the file, tested, killed, of these by time, survived; and each survivor's lines."""
    survived = [(item, result) for item, result in tested if result.test_outcome is TestOutcome.SURVIVED]
    stuck = sum(result.output == "timeout" for _, result in tested)
    numbers = of_all, len(tested), len(tested) - len(survived), stuck, len(survived)
    print("|", " | ".join([path, *map(str, numbers)]), "|", flush=True)
    for item, result in survived:
        print(f"    line {place(item)[0][0]}, {name_of(item)}:")
        for line in (result.diff or "").splitlines():
            if line.startswith(("+", "-")) and not line.startswith(("+++", "---")):
                print(f"    {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
