"""The influence of weights of a model that is too large to be run for each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.contract import Context
from onnxcomp.model import Model, load
from onnxcomp.pipeline.safety.reach import Reach
from onnxcomp.pipeline.weight_search.candidates import ANY_FAMILY, Table, WeightOption
from onnxcomp.pipeline.weight_search.sensitivity import evaluations, measure_influence, probes
from onnxcomp.pipeline.weight_search.tuning import Tuning
from onnxcomp.verify import Verdict
from tests.pipeline.weight_search.fits import put_in

NAMES = "abcdef"
PLAIN = WeightOption(None, 4096, 0.0)
MILD, STRONG = WeightOption(1, 1100, 1e-5), WeightOption(0, 600, 0.01)


def chain() -> Model:
    """A product with each weight in turn; their names say in which."""
    steps = " ".join(f"{name}_y = MatMul({'x' if at == 0 else NAMES[at - 1] + '_y'}, {name})"
                     for at, name in enumerate(NAMES))  # fmt: skip
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,32] x) => (float[N,32] f_y) {{ {steps} }}'
    )
    for name in NAMES:
        proto.graph.initializer.append(numpy_helper.from_array(np.eye(32, dtype=np.float32), name))
    return load(proto)


class Judge:
    """A verifier to which each changed weight adds what it says. asked: the weights of every change."""

    limit = search_limit = 0.03
    metric = "divergence"
    samples = 100

    def __init__(self, **harm: float) -> None:
        self.harm = harm
        self.asked: list[str] = []

    def trials(self, model: Model) -> Any:
        return SimpleNamespace(check=self.check, model=model, verifier=self)

    def check(self, values: Mapping[str, Any]) -> Verdict:
        self.asked.append("".join(sorted(values)))
        found = sum(self.harm[name] for name in values)
        return Verdict(divergence=found, interval=(found, found), limit=self.limit, samples=self.samples)


def measured(judge: Judge, *, once: bool = False, unseen: str = "", deadline: float = math.inf) -> Table:
    table = Table({name: [PLAIN, MILD, STRONG] for name in NAMES}, tuning=Tuning(probed_values=0, fewest_probes=3))
    table.unseen = set(unseen)
    for choice in (0, 1):
        put_in(table, choice, chain())
    tuner: Any = judge
    mild = dict.fromkeys(NAMES, MILD)
    measure_influence(chain(), table, tuner, Reach(tuner), mild, Context(jobs=2), once=once, deadline=deadline)
    return table


def test_neighbours_are_changed_together_and_share_what_that_does() -> None:
    judge = Judge(a=0.01, b=0.03, c=0.0, d=0.002, e=0.5, f=0.1)
    table = measured(judge)
    assert judge.asked[0] == "" and sorted(judge.asked[1:]) == ["ab", "cd", "ef"]
    for names, added in (("ab", 0.04), ("cd", 0.002), ("ef", 0.6)):
        for name in names:
            assert table.influence[name, ANY_FAMILY] == pytest.approx(added / 0.02)
    assert table.predicted("a", STRONG) + table.predicted("b", STRONG) == pytest.approx(0.04)


def test_for_a_shortlist_all_are_changed_at_once() -> None:
    judge = Judge(**dict.fromkeys(NAMES, 0.01))
    table = measured(judge, once=True)
    assert judge.asked == ["", NAMES]
    assert [table.influence[name, ANY_FAMILY] for name in NAMES] == pytest.approx([1.0] * len(NAMES))


def test_a_weight_of_whose_inputs_nothing_was_seen_keeps_to_what_is_safe_without_data() -> None:
    judge = Judge(**dict.fromkeys(NAMES, 0.01))
    table = measured(judge, unseen="cd")
    assert table.unreached == {"c", "d"}
    assert table.options["c"] == [PLAIN, MILD] and table.options["a"] == [PLAIN, MILD, STRONG]
    assert "c" not in "".join(judge.asked)


def test_after_the_deadline_weights_keep_to_what_is_safe_without_data() -> None:
    judge = Judge(**dict.fromkeys(NAMES, 0.01))
    table = measured(judge, deadline=-math.inf)
    assert judge.asked == [""]
    assert all(table.options[name] == [PLAIN, MILD] for name in NAMES)


def test_the_larger_a_model_the_fewer_weights_are_changed_one_by_one() -> None:
    def of(size_bytes: int) -> int:
        return probes(Table({"w": [WeightOption(None, size_bytes, 0.0)]}))

    assert of(90 * 2**20) > 80
    assert of(400 * 10**6) == 20
    assert of(4 * 10**9) == Tuning().fewest_probes


@pytest.mark.parametrize(("nodes", "most"), [(100, 1500), (10_000, 15), (150_000, 12)])
def test_a_model_of_many_nodes_is_opened_less_often(nodes: int, most: int) -> None:
    tuning = Tuning(most_evaluations=1500, probed_values=1500 * 16 * len(NAMES))
    table = Table({name: [PLAIN, MILD, STRONG] for name in NAMES}, tuning=tuning, nodes=nodes)
    assert evaluations(table) == (most if nodes < 150_000 else 1)
    assert probes(table) >= min(most, 12) and probes(table) <= max(most, 12)
