"""Every pass meets every operator: the node tests with their inputs made weights, through each pass alone.

A sample with every operator goes first; the others are slow tests.
"""

from collections.abc import Sequence

import pytest

from onnxcomp.registry import get_pass, pass_names
from onnxcomp.testing.applying import apply, eager
from onnxcomp.testing.promises import assert_keeps_promises
from tests.conformance.cases import Case, not_sampled, sampled, weight_cases

SHARDS_OF_REST = 3


@pytest.mark.parametrize("name", pass_names())
def test_every_operator_is_rewritten_validly_or_left_alone(name: str) -> None:
    assert_rewritten_validly(name, sampled(weight_cases().cases))


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS_OF_REST))
@pytest.mark.parametrize("name", pass_names())
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
