"""Tables of options: which stay for a fit to data, what the fit changes, and single changes on an assignment."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.contract import Context, Pass
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model, load
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.pipeline.weight_search.allocation import assign, cheapest_move, moves_tried, predicted_total, shortlist
from onnxcomp.pipeline.weight_search.candidates import (
    ANY_FAMILY,
    Assignment,
    Table,
    WeightOption,
    build,
    fit_again,
    tabulate,
)
from onnxcomp.pipeline.weight_search.tuning import Tuning
from onnxcomp.registry import get_pass
from onnxcomp.testing.applying import calibration_of

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,24] x) => (float[N,6] y) {
    a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"""
PLAIN = WeightOption(None, 1000, 0.0)


def table_of(**options: list[WeightOption]) -> Table:
    """A table in which each weight's divergence is its error."""
    table = Table({name: [PLAIN, *found] for name, found in options.items()}, {})
    table.influence = {(name, ANY_FAMILY): 1.0 for name in options}
    return table


def of_models(evaluate: Callable[[Model], float], table: Table) -> Callable[[Assignment], float]:
    """The divergence of the classifier under an assignment."""
    return lambda assignment: evaluate(build(classifier(), table, assignment))


def test_the_cheapest_change_adds_least_divergence_for_a_byte() -> None:
    dear, cheap = WeightOption(0, 500, 0.05), WeightOption(0, 500, 0.01)
    table = table_of(one=[dear], other=[cheap])
    now = {"one": PLAIN, "other": PLAIN}
    assert cheapest_move(table, now, 1.0, set()) == ("other", cheap)
    assert cheapest_move(table, now, 1.0, {("other", 0)}) == ("one", dear)
    assert cheapest_move(table, now, 0.001, set()) is None
    assert cheapest_move(table, {"one": dear, "other": cheap}, 1.0, set()) is None


def test_a_change_that_saves_next_to_nothing_comes_last() -> None:
    trifle, worth = WeightOption(0, 995, 0.0), WeightOption(0, 500, 0.05)
    table = table_of(one=[trifle], other=[worth])
    now = {"one": PLAIN, "other": PLAIN}
    assert cheapest_move(table, now, 1.0, set()) == ("other", worth)
    assert cheapest_move(table, now, 0.01, set()) == ("one", trifle)


def test_the_shortlist_keeps_what_limits_around_take_and_what_is_like_it() -> None:
    ladder = [WeightOption(index, 800 - 70 * index, 0.0001 * 4**index) for index in range(8)]
    twin = WeightOption(20, ladder[3].size_bytes + 5, 1.1 * ladder[3].error)
    worse = WeightOption(21, ladder[3].size_bytes, 10 * ladder[3].error)
    table = table_of(one=[*ladder, twin, worse])
    shortlist(table, ladder[3].error, {"one": ladder[0]})
    left = {each.choice for each in table.options["one"]}
    assert {None, 0, 3, 20} <= left
    assert 21 not in left
    far = table_of(one=list(ladder))
    shortlist(far, ladder[0].error / 100, {"one": PLAIN})
    assert {each.choice for each in far.options["one"]} == {None}


def test_an_assignment_that_broke_the_limit_is_not_tried_again() -> None:
    """The whole goes a little over the limit, and the next option is far away on the scale of limits."""
    strong, mild = WeightOption(0, 100, 0.03), WeightOption(1, 500, 0.004)
    table = table_of(w=[mild, strong])
    table.variants = {0: classifier(2.0), 1: classifier(0.5)}

    def evaluate(model: Model) -> float:
        return 0.056 if np.array_equal(values_of(model, "w"), values_of(table.variants[0], "w")) else 0.02

    found = assign(table, of_models(evaluate, table), 0.055, Context(), descend=False)
    assert found == {"w": mild}
    assert predicted_total(table, found) == pytest.approx(0.004)


STRONG = WeightOption(0, 500, 0.01)


def two_weights(*, first: WeightOption = STRONG, second: WeightOption, tuning: Tuning | None = None) -> Table:
    """What "v" and "w" of the classifier can become; each option's values are those of a classifier of its own."""
    table = table_of(v=[first], w=[second])
    table.variants = {0: classifier(2.0), 1: classifier(0.5)}
    table.tuning = tuning or Tuning()
    return table


class Harms:
    """The divergence of a classifier by which weights were changed, whatever was predicted."""

    def __init__(self, **harm: float) -> None:
        self.harm = harm
        self.seen: list[set[str]] = []
        self.before = {name: values_of(classifier(), name) for name in "vw"}

    def __call__(self, model: Model) -> float:
        self.seen.append({name for name, old in self.before.items() if not np.array_equal(values_of(model, name), old)})
        return sum(self.harm[name] for name in self.seen[-1])


def test_single_changes_find_what_the_prediction_missed() -> None:
    """ "v" is the cheaper one by prediction and breaks the limit; "w" is beyond it by prediction, and harmless."""
    table = two_weights(second=WeightOption(1, 500, 0.05))
    harms = Harms(v=0.05, w=0.0)
    found = assign(table, of_models(harms, table), 0.03, Context())
    assert found == {"v": PLAIN, "w": table.options["w"][1]}
    without = assign(table, of_models(harms, table), 0.03, Context(), descend=False)
    assert without == {"v": PLAIN, "w": PLAIN}


def test_the_single_change_that_should_harm_least_for_what_it_saves_is_tried_first_and_once() -> None:
    table = two_weights(
        first=WeightOption(0, 900, 0.01), second=WeightOption(1, 100, 0.04), tuning=Tuning(corrections=0, descents=1)
    )
    harms = Harms(v=0.0, w=0.0)
    assert assign(table, of_models(harms, table), 0.03, Context())["w"].choice == 1  # 0.04 for 900 bytes, 0.01 for 100
    assert harms.seen == [{"w"}]
    table.tuning, harms = Tuning(corrections=0, descents=9), Harms(v=1.0, w=1.0)
    assert assign(table, of_models(harms, table), 0.03, Context()) == {"v": PLAIN, "w": PLAIN}
    assert harms.seen == [{"w"}, {"v"}]


def test_single_changes_add_up_only_as_far_as_the_whole_holds() -> None:
    table = two_weights(second=WeightOption(1, 600, 0.01), tuning=Tuning(corrections=0))
    harms = Harms(v=0.02, w=0.02)
    assert assign(table, of_models(harms, table), 0.03, Context()) == {"v": STRONG, "w": PLAIN}
    assert harms.seen == [{"v"}, {"v", "w"}]
    assert assign(table, of_models(harms, table), 0.04, Context()) == {"v": STRONG, "w": table.options["w"][1]}


def test_after_the_deadline_nothing_more_is_measured() -> None:
    harms = Harms(v=0.0, w=0.0)
    table = two_weights(second=WeightOption(1, 500, 0.01))
    assert assign(table, of_models(harms, table), 0.03, Context(), deadline=-math.inf) == {"v": PLAIN, "w": PLAIN}
    assert not harms.seen


def test_large_models_get_few_moves() -> None:
    assert moves_tried(two_weights(second=STRONG)) == 256 // 16
    large = table_of(w=[STRONG])
    large.options["w"][0] = WeightOption(None, 4 * 10**8, 0.0)  # of which 5 evaluations are allowed
    assert moves_tried(large) == 3


def classifier(factor: float = 1.0) -> Model:
    proto = parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (24, 64)), ("v", (64, 6))):
        values = factor * rng.standard_normal(shape)
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return load(proto)


def correlated(model: Model) -> Context:
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((300, 6)) @ rng.standard_normal((6, 24))
    return Context(calibration=calibration_of(model.proto, {"x": inputs.astype(np.float32)}))


def grids() -> list[Pass]:
    return [get_pass("quantize-weights")(bits=bits) for bits in (8, 4, 3)]


def test_options_are_fitted_again_for_the_weights_that_have_them() -> None:
    model = classifier()
    context = correlated(model)
    table = tabulate(model, grids(), dataclasses.replace(context, calibration=None))
    before = {each.choice: each.error for each in table.options["w"]}
    table.options["w"] = [each for each in table.options["w"] if each.choice in (None, 1)]
    fit_again(table, model, grids(), context)
    assert [each.choice for each in table.options["w"]] == [None, 1]
    assert table.options["w"][1].error < 0.7 * before[1]  # inputs of six directions leave room to make up for errors
    expected, _ = apply_pass(model, grids()[1], context)
    assert np.array_equal(values_of(table.variants[1], "w"), values_of(expected, "w"))
    assert np.array_equal(values_of(table.variants[2], "w"), values_of(model, "w"))


def test_strengths_are_not_searched_where_no_weight_may_change() -> None:
    told: list[str] = []
    context = Context(exclude=("*",), progress=lambda done, total, what: told.append(what))
    table = tabulate(classifier(), grids(), context)
    assert not table.options
    assert [each for each in told if "at strength" in each] == ["quantize-weights at strength 1"]


def test_after_the_deadline_options_stay_as_they_were() -> None:
    model = classifier()
    context = correlated(model)
    table = tabulate(model, grids(), dataclasses.replace(context, calibration=None))
    before = {name: list(found) for name, found in table.options.items()}
    fit_again(table, model, grids(), context, deadline=-math.inf)
    assert table.options == before


def values_of(model: Model, name: str) -> np.ndarray:
    return next(np.asarray(each.values) for each in weights(open_graph(model)) if each.name == name)
