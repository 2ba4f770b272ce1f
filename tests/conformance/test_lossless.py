"""Every node test that ONNX Runtime runs goes through load, the lossless preset and save, and gives the same.

A sample with every operator goes first. Of the others every third is a slow test, all are by `make test-thorough`.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest

from onnxcomp.model import load
from onnxcomp.pipeline import optimize
from onnxcomp.runtime import Session
from onnxcomp.testing.comparing import differences, rounding_of
from tests.conformance.cases import Case, node_cases, not_sampled, sampled, weight_cases

SHARDS, SHARDS_OF_REST = 8, 33
STEP = 1 if "ONNXCOMP_THOROUGH" in os.environ else 3
LOADED_BY_ORT = 1300  # of onnx 1.19's to 1.23's 1,884 node tests; far fewer would mean that collecting broke


def test_most_node_tests_are_runnable() -> None:
    """Which ones are refused depends on the installed versions and is computed, so only the scale is held."""
    collected = node_cases()
    assert len(collected.cases) >= LOADED_BY_ORT
    assert all(collected.refused.values())
    assert len(weight_cases().cases) > 500


@pytest.mark.parametrize("shard", range(SHARDS))
def test_lossless_keeps_the_outputs_of_every_operator(shard: int, tmp_path: Path) -> None:
    cases = [*sampled(node_cases().cases), *sampled(weight_cases().cases)]
    assert_lossless(cases[shard::SHARDS], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(0, SHARDS_OF_REST, STEP))
def test_lossless_keeps_the_outputs_of_every_node_test(shard: int, tmp_path: Path) -> None:
    cases = [*not_sampled(node_cases().cases), *not_sampled(weight_cases().cases)]
    assert_lossless(cases[shard::SHARDS_OF_REST], tmp_path)


def assert_lossless(cases: Sequence[Case], folder: Path) -> None:
    failures = []
    for number, case in enumerate(cases):
        try:
            problem = _problem(case, folder / f"{number}.onnx")
        except Exception as error:  # noqa: BLE001 - collected, so that one run names every failing model
            problem = f"{type(error).__name__}: {error}"
        if problem:
            failures.append(f"{case.name}: {problem}")
    assert not failures, f"{len(failures)} of {len(cases)} models:\n" + "\n".join(failures)


def _problem(case: Case, path: Path) -> str:
    """What is wrong with the result, or nothing."""
    source = path.with_suffix(".source.onnx")
    source.write_bytes(case.model.SerializeToString())
    result = optimize(source, recipe="lossless", measure=False)
    result.save(path)
    if source.read_bytes() != case.model.SerializeToString():
        return "the input file has changed"
    session = Session(path)
    different = differences(case.outputs, dict(session.run(case.feeds)), rtol=rounding_of(case.model))
    if different and case.repeats:
        return f"other outputs: {different}"
    if load(path).size_bytes > _bytes_of(case.model):
        return f"grew from {_bytes_of(case.model)} to {load(path).size_bytes} bytes"
    return ""


def _bytes_of(model: onnx.ModelProto) -> int:
    return model.ByteSize()
