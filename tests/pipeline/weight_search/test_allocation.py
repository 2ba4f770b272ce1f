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
from onnxcomp.pipeline.weight_search.allocation import (
    assign,
    cheapest_move,
    moves_tried,
    predicted_total,
    rungs,
    shortlist,
)
from onnxcomp.pipeline.weight_search.assembly import build
from onnxcomp.pipeline.weight_search.candidates import (
    ANY_FAMILY,
    Assignment,
    Candidates,
    Table,
    WeightOption,
)
from onnxcomp.pipeline.weight_search.data_free import as_made, assign_by_noise
from onnxcomp.pipeline.weight_search.tuning import Tuning
from onnxcomp.registry import get_pass
from onnxcomp.testing.applying import calibration_of
from tests.pipeline.weight_search.fits import put_in

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
    assert cheapest_move(table, now, 1.0, {}) == ("other", cheap)
    assert cheapest_move(table, now, 1.0, {"other": cheap.error}) == ("one", dear)
    assert cheapest_move(table, now, 0.001, {}) is None
    assert cheapest_move(table, {"one": dear, "other": cheap}, 1.0, {}) is None


def test_after_a_failure_only_milder_changes_of_the_weight_are_tried() -> None:
    ladder = [WeightOption(0, 700, 0.01), WeightOption(1, 500, 0.02), WeightOption(2, 400, 0.03)]
    table = table_of(one=ladder)
    assert cheapest_move(table, {"one": PLAIN}, 1.0, {"one": 0.02}) == ("one", ladder[0])
    assert cheapest_move(table, {"one": PLAIN}, 1.0, {"one": 0.01}) is None


def test_a_change_that_saves_next_to_nothing_comes_last() -> None:
    trifle, worth = WeightOption(0, 995, 0.0), WeightOption(0, 500, 0.05)
    table = table_of(one=[trifle], other=[worth])
    now = {"one": PLAIN, "other": PLAIN}
    assert cheapest_move(table, now, 1.0, {}) == ("other", worth)
    assert cheapest_move(table, now, 0.01, {}) == ("one", trifle)


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


def test_of_large_models_the_shortlist_keeps_what_limits_near_the_one_asked_for_take() -> None:
    ladder = [WeightOption(index, 800 - 100 * index, 0.001 * 4**index) for index in range(6)]
    asked, left = ladder[1].error, []
    for large_bytes in (2**25, 10):
        table = table_of(one=list(ladder))
        table.tuning = Tuning(large_bytes=large_bytes, pruned_within=8.0)
        shortlist(table, asked, {"one": ladder[0]})
        left.append({each.choice for each in table.options["one"]})
    assert left == [{None, 0, 1, 2, 3}, {None, 0, 1, 2}], "up to 32 times, and up to 8 times"


def test_an_assignment_that_broke_the_limit_is_not_tried_again() -> None:
    """The whole goes a little over the limit, and the next option is far away on the scale of limits."""
    strong, mild = WeightOption(0, 100, 0.03), WeightOption(1, 500, 0.004)
    table = table_of(w=[mild, strong])
    for choice, factor in enumerate((2.0, 0.5)):
        put_in(table, choice, classifier(factor))

    def evaluate(model: Model) -> float:
        return 0.056 if np.array_equal(values_of(model, "w"), table.fits[0, "w"].values()) else 0.02

    found = assign(table, of_models(evaluate, table), 0.055, Context(), descend=False)
    assert found == {"w": mild}
    assert predicted_total(table, found) == pytest.approx(0.004)


STRONG = WeightOption(0, 500, 0.01)


def two_weights(*, first: WeightOption = STRONG, second: WeightOption, tuning: Tuning | None = None) -> Table:
    """What "v" and "w" of the classifier can become; each option's values are those of a classifier of its own."""
    table = table_of(v=[first], w=[second])
    for choice, factor in enumerate((2.0, 0.5)):
        put_in(table, choice, classifier(factor))
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


def looked(model: Model, context: Context, passes: list[Pass] | None = None) -> tuple[Candidates, Table]:
    candidates = Candidates(model, passes or grids(), context)
    return candidates, candidates.without_data().look(probe_error=0.01)


def test_options_are_made_with_data_for_the_weights_that_have_them() -> None:
    model = classifier()
    context = correlated(model)
    candidates, table = looked(model, context)
    before = {each.choice: each.error for each in table.options["w"]}
    table.options["w"] = [each for each in table.options["w"] if each.choice in (None, 1)]
    candidates.again(table, {})
    assert [each.choice for each in table.options["w"]] == [None, 1]
    assert table.options["w"][1].error < 0.7 * before[1]  # inputs of six directions leave room to make up for errors
    expected, _ = apply_pass(model, grids()[1], context)
    assert np.array_equal(table.fits[1, "w"].values(), values_of(expected, "w"))
    assert (2, "w") not in table.fits and (2, "v") in table.fits


@pytest.mark.parametrize("passes", [grids(), [get_pass("cluster-weights")(bits=bits) for bits in (5, 3, 2)]])
def test_what_a_sample_tells_is_near_what_the_whole_weight_becomes(
    monkeypatch: pytest.MonkeyPatch, passes: list[Pass]
) -> None:
    model = wide()
    context = Context()
    told = looked(model, context, passes)[1].options["w"]
    monkeypatch.setattr("onnxcomp.pipeline.weight_search.fits.SAMPLED_VALUES", 2**30)
    whole = looked(model, context, passes)[1].options["w"]
    assert [each.choice for each in told] == [each.choice for each in whole]
    for one, other in zip(told[1:], whole[1:], strict=True):
        assert one.error == pytest.approx(other.error, rel=0.15)
        assert one.size_bytes == pytest.approx(other.size_bytes, rel=0.05)
        assert one.noise == pytest.approx(other.noise, rel=0.2)


def test_what_noise_allows_and_a_probe_are_made_of_the_whole_weight() -> None:
    model = wide()
    _, table = looked(model, Context())
    mild = assign_by_noise(model, table)["w"]
    assert mild.choice == 0
    assert np.array_equal(table.fits[0, "w"].values(), values_of(apply_pass(model, grids()[0], Context())[0], "w"))
    probe = min(table.options["w"][1:], key=lambda each: abs(math.log(each.error / 0.01)))
    assert (probe.choice, "w") in table.fits
    assert table.options["w"][1].error == table.fits[0, "w"].error


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_the_table_is_the_same_for_any_number_of_jobs(monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    monkeypatch.setattr("onnxcomp.pipeline.weight_search.candidates.PROCESSES_FROM", 0)
    model = classifier()
    context = correlated(model)
    tables = []
    for each in (1, jobs):
        candidates, table = looked(model, dataclasses.replace(context, jobs=each))
        candidates.again(table, {})
        tables.append(table)
    one, other = tables
    assert one.options == other.options
    assert list(one.fits) == list(other.fits)
    assert all(one.fits[key].values().tobytes() == other.fits[key].values().tobytes() for key in one.fits)


def test_strengths_are_not_searched_where_no_weight_may_change() -> None:
    told: list[str] = []
    context = Context(exclude=("*",), progress=lambda done, total, what: told.append(what))
    table = Candidates(classifier(), grids(), context).look()
    assert not table.options
    assert not [each for each in told if "trying strengths" in each]


def test_after_the_deadline_only_what_was_made_before_is_an_option() -> None:
    model = classifier()
    context = correlated(model)
    candidates, table = looked(model, context)
    mild = as_made(table, assign_by_noise(model, table), len(grids()))
    dataclasses.replace(candidates, deadline=-math.inf).again(table, mild)
    assert table.options == {name: [found[0], mild[name]] for name, found in table.options.items()} != {}
    assert all((each.choice, name) in table.fits for name, each in mild.items())


def wide() -> Model:
    """One weight that is sampled."""
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,48] x) => (float[N,600] y) { y = MatMul(x, w) }'
    )
    rng = np.random.default_rng(0)
    values = rng.standard_normal((48, 600)) * rng.uniform(0.5, 2, 600)
    proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), "w"))
    return load(proto)


def values_of(model: Model, name: str) -> np.ndarray:
    return next(np.asarray(each.values) for each in weights(open_graph(model)) if each.name == name)


def test_between_options_far_apart_there_are_rungs() -> None:
    """Of 15% of bytes at least one that no other beats; none beyond the options that are taken."""
    sizes = [1000, 960, 870, 860, 700, 690, 500, 400, 300]
    options = [WeightOption(None, 4000, 0.0)]
    options += [WeightOption(at, size, 1 / size) for at, size in enumerate(sizes)]
    worse = WeightOption(20, 750, 1 / 690)  # more bytes than the next, and no less error
    table = Table({"w": [*options, worse]})
    taken = [options[0], options[1], options[8]]  # 1000 and 400 bytes
    assert [each.size_bytes for each in rungs(table, "w", taken)] == [860, 700, 500]
    assert rungs(table, "w", [options[0]]) == []
