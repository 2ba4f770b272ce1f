"""Every pass meets every operator: the node tests with their inputs made weights, through each pass alone.

A sample with every operator goes first. The others are slow tests: each pass meets a third of them, and each of them a
third of the passes; all meet all by `make test-thorough`.
"""

import os
from collections.abc import Sequence

import pytest

from onnxcomp.registry import get_pass, pass_names
from onnxcomp.testing.applying import apply, eager
from onnxcomp.testing.promises import assert_keeps_promises
from tests.conformance.cases import Case, not_sampled, sampled, weight_cases

SHARDS_OF_REST = 3
THOROUGH = "ONNXCOMP_THOROUGH" in os.environ


@pytest.mark.parametrize("name", pass_names())
def test_every_operator_is_rewritten_validly_or_left_alone(name: str) -> None:
    assert_rewritten_validly(name, sampled(weight_cases().cases))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shard"),
    [
        (name, shard)
        for place, name in enumerate(pass_names())
        for shard in range(SHARDS_OF_REST)
        if THOROUGH or shard == place % SHARDS_OF_REST
    ],
)
def test_every_node_test_is_rewritten_validly_or_left_alone(name: str, shard: int) -> None:
    assert_rewritten_validly(name, not_sampled(weight_cases().cases)[shard::SHARDS_OF_REST])


def assert_rewritten_validly(name: str, cases: Sequence[Case]) -> None:
    kind = get_pass(name)
    rewrite = kind(**eager(kind))
    failures = []
    for case in cases:
        try:
            done = apply(case.model, rewrite, case.feeds)
            assert_keeps_promises(done, case.feeds, case.outputs, where=case.name)
        except Exception as error:  # noqa: BLE001 - collected, so that one run names every failing model
            failures.append(f"{case.name}: {type(error).__name__}: {error}")
    assert not failures, f"{len(failures)} models:\n" + "\n".join(failures)
