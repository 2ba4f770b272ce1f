"""How a budget is spent: which limit, which trial is taken, what is held back. No model runs: harm is made up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.contract import Context, Pass
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.weights.roles import weights, with_arrays
from onnxcomp.model import Model, load
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.pipeline.objective import Objective
from onnxcomp.pipeline.safety.reach import Reach
from onnxcomp.pipeline.weight_search.allocation import culprit
from onnxcomp.pipeline.weight_search.candidates import Candidates, WeightOption
from onnxcomp.pipeline.weight_search.driver import Choosing
from onnxcomp.pipeline.weight_search.tuning import Tuning
from onnxcomp.receipt import Application
from onnxcomp.recipe import Choose
from onnxcomp.registry import get_pass
from onnxcomp.verify import Verdict, Verifier

LIMIT = 0.03
GRIDS: list[Pass] = [get_pass("quantize-weights")(bits=bits) for bits in (8, 6, 4, 3, 2)]
Harm = Callable[[Mapping[str, float]], float]  # errors by weight -> divergence


def model_of(*names: str) -> Model:
    body = " ".join(f"{name}_y = MatMul(x, {name})" for name in names)
    outputs = ", ".join(f"float[N,32] {name}_y" for name in names)
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,32] x) => ({outputs}) {{ {body} }}'
    )
    rng = np.random.default_rng(0)
    for name in names:
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((32, 32)).astype(np.float32), name))
    return load(proto)


@dataclass
class Judge:
    """Tells the divergence of a model from the relative errors of its weights. width: of the interval above it."""

    original: Model
    harm: Harm
    width: float = 0.0
    limit: float = LIMIT
    metric: str = "divergence"
    samples: int = 100
    checks: list[float] = field(default_factory=list)

    @property
    def search_limit(self) -> float:
        return self.limit

    def check(self, model: Model) -> Verdict:
        before = {each.name: np.asarray(each.values) for each in weights(open_graph(self.original))}
        after = {each.name: np.asarray(each.values) for each in weights(open_graph(model))}
        errors = {
            name: float(np.square(after[name] - old).sum() / np.square(old).sum()) for name, old in before.items()
        }
        value = self.harm(errors)
        self.checks.append(value)
        return Verdict(
            divergence=value, interval=(value, value + self.width), limit=self.limit, samples=100,
            failed=math.isinf(value), reasons=() if value <= self.limit else (f"{value:.3g} is too far",),
        )  # fmt: skip

    def trials(self, model: Model) -> SimpleNamespace:
        """Of models that are composed."""

        def check(values: Mapping[str, np.ndarray]) -> Verdict:
            return self.check(with_arrays(model, values))

        return SimpleNamespace(verifier=self, model=model, check=check)


@dataclass
class Labelled(Judge):
    """Counts few labels, none of which ever changes, and so holds the divergence as well."""

    def check(self, model: Model) -> Verdict:
        harm = Judge(self.original, self.harm).check(model).divergence
        return Verdict(divergence=0.0, interval=(0.0, 0.3), limit=self.limit, samples=10, beside=(harm, LIMIT))


def total(errors: Mapping[str, float]) -> float:
    return sum(errors.values())


def choosing(model: Model, *, tuner: Harm = total, verifier: Harm = total, width: float = 0.0, **step: Any) -> Choosing:
    """The choice among grids, judged by made-up harm on either part of the data."""
    judges = Judge(model, tuner), Judge(model, verifier, width)
    first: Verifier = judges[0]  # type: ignore[assignment]
    second: Verifier = judges[1]  # type: ignore[assignment]
    made = Choose(tuple(GRIDS), **step)
    every = Tuning(alike=(1e9, 1e9))  # the grids are few: none is left out beforehand
    return Choosing(made, model, model, Context(), second, first, Reach(first), Objective(), math.inf, tuning=every)


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Choose, "candidates", property(lambda self: tuple(GRIDS)))


def bits(choice: Choosing) -> dict[str, int | None]:
    """What each weight got."""
    trial = choice.choose()
    assert trial is not None and trial.verdict.passed
    strengths = {number: each.bits for number, each in enumerate(GRIDS)}  # type: ignore[attr-defined]
    chosen = {name: each.choice for name, each in trial.assignment.items()}
    return {name: None if each is None else strengths[each % len(GRIDS)] for name, each in chosen.items()}


def mean(errors: Mapping[str, float]) -> float:
    """Of many weights, so that a step of one of them is a small one."""
    return total(errors) / len(errors)


def test_the_budget_is_spent() -> None:
    found = choosing(model_of(*"abcdef"), tuner=mean, verifier=mean)
    trial = found.choose()
    assert trial is not None and 0.5 * LIMIT < trial.verdict.divergence <= LIMIT


@pytest.mark.parametrize(("tolerable", "strength", "said"), [(1e-2, 6, "held back"), (1e-4, 8, "kept at 8 bits")])
def test_one_weight_that_carries_a_failure_is_held_back_alone(tolerable: float, strength: int, said: str) -> None:
    """On the verification part the gate "g" flips samples, which the tuning part does not show."""

    def flips(errors: Mapping[str, float]) -> float:
        return total(errors) + (0.5 if errors["g"] > tolerable else 0.0)

    model = model_of("a", "b", "g")
    found = choosing(model, tuner=lambda errors: errors["a"] + errors["b"] + 0.1 * errors["g"], verifier=flips)
    strengths = bits(found)
    assert strengths["g"] == strength and strengths["a"] in (4, 3) and strengths["b"] in (4, 3)
    assert f"g: it alone broke the budget; {said}" in found.notes


@pytest.mark.parametrize("limit", [0.005, 0.0])
def test_a_count_that_fails_by_what_is_held_beside_it_goes_on(limit: float) -> None:
    """No label changes, the divergence beside the labels is over its limit: the search tries less."""
    model = model_of(*"abcdef")
    found = choosing(model, tuner=lambda errors: mean(errors) / 1.5)
    found.verifier = Labelled(model, mean, limit=limit, metric="accuracy")  # type: ignore[assignment]
    trial = found.choose()
    assert trial is not None and trial.verdict.beside is not None
    assert trial.verdict.passed and 0.2 * LIMIT < trial.verdict.beside[0] <= LIMIT


def test_a_weight_that_bears_nothing_is_left_as_it_was() -> None:
    def flips(errors: Mapping[str, float]) -> float:
        return total(errors) + (0.5 if errors["g"] > 0 else 0.0)

    model = model_of("a", "b", "g")
    found = choosing(model, tuner=lambda errors: errors["a"] + errors["b"] + 0.1 * errors["g"], verifier=flips)
    assert bits(found)["g"] is None
    assert "g: it alone broke the budget; left as it was" in found.notes


def test_what_noise_alone_allows_is_tried_where_the_search_ends_larger() -> None:
    """The verification part bears 8 bits of all and nothing that the search, blind to "a", proposes."""

    def steep(errors: Mapping[str, float]) -> float:
        return 0.0 if max(errors.values()) < 1e-4 else 0.2 * len([each for each in errors.values() if each > 1e-4])

    found = choosing(model_of("a", "b", "c"), verifier=steep)
    assert set(bits(found).values()) == {8}
    assert any("0% of the budget is taken up" in note and "is too far" in note for note in found.notes)


def test_what_noise_alone_allows_is_taken_where_the_search_left_a_weight_plain() -> None:
    """The tuning part is touchy about "a", of which the verification part bears 8 bits."""

    def touchy(errors: Mapping[str, float]) -> float:
        return 1e4 * errors["a"] + errors["b"]

    def verified(errors: Mapping[str, float]) -> float:
        return 0.0 if max(errors.values()) < 1e-4 else 1.0

    assert bits(choosing(model_of("a", "b"), tuner=touchy, verifier=verified)) == {"a": 8, "b": 8}


def test_with_passes_that_follow_the_whole_interval_of_a_trial_is_within_the_limit() -> None:
    """The upper end of the interval counts: with a wide one less is spent."""
    then = (get_pass("remove-noops")(),)
    narrow, wide = (
        choosing(model_of(*"abcdef"), tuner=mean, verifier=mean, width=width, then=then).choose()
        for width in (0.0, 0.02)
    )
    assert narrow is not None and wide is not None
    assert wide.verdict.divergence <= LIMIT - 0.02 < narrow.verdict.divergence
    assert narrow.cost < wide.cost


def test_a_choice_that_finds_nothing_says_what_stood_in_the_way() -> None:
    found = choosing(model_of("a", "b"), verifier=lambda errors: 1.0 if max(errors.values()) > 0 else 0.0)
    trial = found.choose()
    assert trial is not None and (not trial.verdict.passed or not trial.applications)
    assert found.refuted is not None and found.refuted.reasons == ("1 is too far",)


def test_the_number_of_trials_is_bounded() -> None:
    found = choosing(model_of("a", "b", "c"), verifier=lambda errors: 1.0 if max(errors.values()) > 0 else 0.0)
    found.choose()
    assert len(found.verifier.checks) <= 48  # type: ignore[attr-defined]


PLAIN, MILD, STRONG = WeightOption(None, 100, 0.0), WeightOption(0, 50, 0.01), WeightOption(1, 20, 0.1)


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        ({"a": 0.0, "b": 1.0, "c": 0.0}, "b"),
        ({"a": 0.01, "b": 0.01, "c": 1.0}, "c"),
        ({"a": 0.02, "b": 0.02, "c": 0.02}, None),  # none alone makes the rest hold
        ({"a": 0.5, "b": 0.5, "c": 0.0}, None),
        ({"a": 0.011, "b": 0.011, "c": 0.01}, None),  # any of them would do, none carries it
        ({"a": 0.0, "b": 0.01, "c": 0.0}, None),  # it holds
    ],
)
def test_a_culprit_is_one_weight_that_carries_most_of_a_failure(harm: dict[str, float], name: str | None) -> None:
    assignment = dict.fromkeys("abc", STRONG) | {"left": PLAIN}
    found = culprit(assignment, lambda rest: sum(harm.get(each, 0.0) for each in rest), LIMIT, 0.5)
    assert (None if found is None else found[0]) == name
    assert found is None or found[1] == pytest.approx(harm[found[0]])


def test_a_table_predicts_what_was_measured() -> None:
    model = model_of("a")
    table = Candidates(model, GRIDS, Context()).look()
    option = table.options["a"][2]
    table.influence["a", -1] = 1.0
    assert table.predicted("a", option) == pytest.approx(option.error)
    table.measured["a", option.choice] = 0.7  # type: ignore[index]
    assert table.predicted("a", option) == 0.7


def test_trials_are_replayed_by_their_applications() -> None:
    """Each application names its weights; the later ones stand beside the first."""

    def uneven(errors: Mapping[str, float]) -> float:
        return 3 * errors["a"] + 0.1 * errors["b"]

    found = choosing(model_of("a", "b"), tuner=uneven, verifier=uneven)
    trial = found.choose()
    assert trial is not None
    first, *others = trial.applications
    assert not first.beside and all(each.beside for each in others) and others
    again = {tuple(each.choice or ()): applied(found.model, each) for each in trial.applications}
    for names, model in again.items():
        for name in names:
            assert np.array_equal(values(model, name), values(trial.model, name))


def applied(model: Model, application: Application) -> Model:
    rewrite = get_pass(application.rewrite)(**application.parameters)
    return apply_pass(model, rewrite, Context(include=frozenset(application.choice or ())))[0]


def values(model: Model, name: str) -> np.ndarray:
    return next(np.asarray(each.values) for each in weights(open_graph(model)) if each.name == name)
