"""Every pass meets every operator: the node tests with their inputs made weights, through each pass alone."""

import pytest

from onnxcomp.registry import get_pass, pass_names
from tests.applying import apply, assert_keeps_promises, eager
from tests.conformance.cases import weight_cases

SHARDS = 4


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("name", pass_names())
def test_every_operator_is_rewritten_validly_or_left_alone(name: str, shard: int) -> None:
    kind = get_pass(name)
    rewrite = kind(**eager(kind))
    failures = []
    for case in weight_cases().cases[shard::SHARDS]:
        try:
            done = apply(case.model, rewrite, case.feeds)
            assert_keeps_promises(done, case.feeds, case.outputs, where=case.name)
        except Exception as error:  # noqa: BLE001 - collected, so that one run names every failing model
            failures.append(f"{case.name}: {type(error).__name__}: {error}")
    assert not failures, f"{len(failures)} models:\n" + "\n".join(failures)
