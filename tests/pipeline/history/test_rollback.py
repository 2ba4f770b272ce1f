"""Taking back: how much is kept of a step, and that a stricter second try costs no second round of measuring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.contract import Context
from onnxcomp.model import Model, load
from onnxcomp.pipeline.apply import apply_choice, apply_pass
from onnxcomp.pipeline.history.rollback import FEWER, MOST_CULPRITS, culprits, take_back
from onnxcomp.registry import get_pass

WEIGHTS = 12


def chain() -> Model:
    """x + w0 + w1 + ..., each weight with half of its values near zero."""
    names = [f"w{i}" for i in range(WEIGHTS)]
    sums = ["x", *(f"s{i}" for i in range(WEIGHTS - 1)), "y"]
    nodes = [helper.make_node("Add", [sums[i], name], [sums[i + 1]], name=f"add{i}") for i, name in enumerate(names)]
    values = np.array([[1e-3, 2.0], [3.0, 1e-3]], np.float32)
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
    graph = helper.make_graph(
        nodes,
        "g",
        info[:1],
        info[1:],
        [numpy_helper.from_array(values * (i + 1), name) for i, name in enumerate(names)],
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def pruned_weights(model: Model) -> int:
    return sum((numpy_helper.to_array(each) == 0).any() for each in model.proto.graph.initializer)


def test_a_stricter_try_keeps_fewer_and_measures_no_single_again() -> None:
    before, context = chain(), Context()
    rewrite = get_pass("prune-weights")(sparsity=0.5)
    after, outcome = apply_pass(before, rewrite, context)
    assert len(outcome.changed) == WEIGHTS
    measured: list[int] = []

    def evaluate(model: Model) -> float:
        measured.append(pruned_weights(model))
        return 0.01 * measured[-1]

    first = take_back(before, after, outcome, rewrite, context, evaluate, 0.085)
    assert len(first.kept) == 8 and measured[:WEIGHTS] == [1] * WEIGHTS
    measured.clear()
    # the second limit alone would bear all eight again
    second = take_back(before, after, outcome, rewrite, context, evaluate, 0.08, first)
    assert len(second.kept) == int(FEWER * 8) == pruned_weights(second.model)
    assert 0 < len(measured) <= 4 and 1 not in measured
    assert sorted([*second.kept, *second.taken]) == sorted(first.own) and second.own == first.own


def test_a_stricter_try_after_one_change_was_left_keeps_none() -> None:
    before, context = chain(), Context()
    rewrite = get_pass("prune-weights")(sparsity=0.5)
    after, outcome = apply_pass(before, rewrite, context)
    first = take_back(before, after, outcome, rewrite, context, pruned_weights, 1)
    assert len(first.kept) == 1
    second = take_back(before, after, outcome, rewrite, context, pruned_weights, 1, first)
    assert not second.kept and second.model is before and len(second.taken) == WEIGHTS


@pytest.mark.parametrize("alone", [False, True])
def test_the_least_harmful_are_kept(alone: bool) -> None:
    """Of harms from 1 to 12, in no order, those from 1 to 5 make 15. alone: each is made anew, and not put together."""
    before, context = chain(), Context()
    rewrite = get_pass("prune-weights")(sparsity=0.5)
    after, outcome = apply_pass(before, rewrite, context)
    harm = {f"w{i}": 5 * (i + 1) % 13 for i in range(WEIGHTS)}

    def evaluate(model: Model) -> float:
        tensors = model.proto.graph.initializer
        return sum(harm[each.name] for each in tensors if (numpy_helper.to_array(each) == 0).any())

    again = (lambda choice: apply_choice(before, rewrite, choice, context)) if alone else None
    rest = take_back(before, after, outcome, rewrite, context, evaluate, 20, again=again)
    assert sorted(harm[name] for name in rest.kept) == [1, 2, 3, 4, 5]
    assert sorted(harm[name] for name in rest.taken) == [6, 7, 8, 9, 10, 11, 12]
    assert rest.own == {name: pytest.approx(value) for name, value in harm.items()}
    assert evaluate(rest.model) == 15


@pytest.mark.parametrize("bad", [{"c0"}, {"c35"}, {"c7", "c30"}, {f"c{i}" for i in range(MOST_CULPRITS)}])
def test_few_culprits_among_many_are_found_in_few_attempts(bad: set[str]) -> None:
    attempts = []

    def holds_without(left: Sequence[str]) -> bool:
        attempts.append(left)
        return bad <= set(left)

    assert set(culprits([f"c{i}" for i in range(36)], holds_without)) == bad
    assert len(attempts) <= 7 * len(bad)


def test_where_many_changes_break_a_step_none_is_picked() -> None:
    names = [f"c{i}" for i in range(36)]
    assert culprits(names, lambda left: len(left) > MOST_CULPRITS) == []
    assert culprits(["alone"], lambda left: True) == []


@pytest.mark.parametrize(("most", "checks"), [(6, 0), (7, 7), (13, 7), (14, 14), (10**9, 14)])
def test_a_culprit_that_takes_more_checks_than_there_are_left_is_not_looked_for(most: int, checks: int) -> None:
    """Of 36 changes two are bad: 6 halvings and a look at the rest for each."""
    done: list[Sequence[str]] = []

    def holds_without(left: Sequence[str]) -> bool:
        done.append(left)
        return {"c3", "c30"} <= set(left)

    found = culprits([f"c{i}" for i in range(36)], holds_without, most_checks=most)
    assert len(done) <= checks and set(found) == ({"c3", "c30"} if most >= 14 else set())
