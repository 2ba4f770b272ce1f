"""`make mutants`: it names files that there are, and takes the same sample each time."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = """
def least(values: list[int] | None, low: int = 0) -> int | None:
    kept: int | None = low + 1
    return min(values) - low if values == [] or low > 2 else kept
"""


def test_mutated_paths_and_their_tests_exist() -> None:
    tests = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutants"]["tests"]
    assert [each for path in tests for each in (path, *tests[path]) if not (ROOT / each).exists()] == []


def test_a_larger_sample_holds_the_smaller_and_spares_annotations(tmp_path: Path) -> None:
    pytest.importorskip("cosmic_ray", reason="it comes with the extra `mutants`")
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import use_db

    from benchmarks import mutants

    (tmp_path / "least.py").write_text(SOURCE)
    with use_db(tmp_path / "s.sqlite") as session:
        init([tmp_path / "least.py"], session, {})
        items = session.work_items
    small, large, other = (
        [mutants.name_of(each) for each in mutants.sampled(items, SOURCE, size=size, seed=seed)]
        for size, seed in ((6, "0"), (60, "0"), (6, "1"))
    )
    assert small == large[:6] != other and len(set(large)) == len(large)
    of_types = [name for name in map(mutants.name_of, items) if "_BitOr_" in name]
    assert of_types and not set(of_types) & set(large)
    places = [mutants.place(each) for each in mutants.sampled(items, SOURCE, size=6, seed="0")]
    assert len(set(places)) == 6  # of a dozen operators in one place only one is taken at first
