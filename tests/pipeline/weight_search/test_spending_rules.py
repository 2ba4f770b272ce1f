"""What a search of strengths does after one trial, by the trial's numbers alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnxcomp.contract import Context
from onnxcomp.pipeline.history.rollback import STRICTER
from onnxcomp.pipeline.weight_search.assignment import Attempt
from onnxcomp.pipeline.weight_search.candidates import ANY_FAMILY, Assignment, Table, WeightOption
from onnxcomp.pipeline.weight_search.experience import Experience
from onnxcomp.pipeline.weight_search.spending import Spending
from onnxcomp.verify import Verdict

LIMIT = 0.03
PLAIN, MILD, STRONG = WeightOption(None, 1000, 0.0), WeightOption(0, 600, 0.005), WeightOption(1, 300, 0.008)


@dataclass
class Told:
    """A step whose trials are not made: the divergence of each is the sum of what its options are said to harm."""

    step: Any
    verifier: Any
    deadline: float = math.inf
    harm: Mapping[tuple[str, int | None], float] = field(default_factory=dict)
    seen: list[Assignment] = field(default_factory=list)
    held_back: dict[str, str] = field(default_factory=dict)

    def divergence_alone(self, table: Table, assignment: Assignment) -> float:
        self.seen.append(assignment)
        return sum(self.harm.get((name, option.choice), 0.0) for name, option in assignment.items())

    def tried(self, context: Context, table: Table, assignment: Assignment) -> Attempt:
        self.seen.append(assignment)
        value = sum(self.harm[name, option.choice] for name, option in assignment.items())
        return trial(assignment, value, table.total(assignment))


def verdict(value: float, high: float | None = None, **known: Any) -> Verdict:
    return Verdict(divergence=value, interval=(0.0, value if high is None else high), limit=LIMIT, samples=100, **known)


def trial(assignment: Assignment, value: float, cost: float) -> Attempt:
    return Attempt(None, [], [], verdict(value), assignment, cost)  # type: ignore[arg-type]


def spending(*, then: bool = False, metric: str = "divergence", search_limit: float = LIMIT, **work: Any) -> Spending:
    """Two weights, each to be left, mild or strong; the search goes by the divergence, the budget by ``metric``."""
    table = Table({name: [PLAIN, MILD, STRONG] for name in "vw"})
    table.influence = {(name, ANY_FAMILY): 1.0 for name in "vw"}
    verifier = SimpleNamespace(limit=LIMIT, search_limit=search_limit, metric=metric)
    tuner: Any = SimpleNamespace(limit=LIMIT, search_limit=LIMIT, metric="divergence")
    step = SimpleNamespace(then=("a pass that repairs",) if then else ())
    told: Any = Told(step, verifier, **work)
    return Spending(told, Context(), table, {}, tuner, None)


# --- what may be taken ---


def test_without_passes_that_follow_what_passes_may_be_taken() -> None:
    assert spending()._holds(verdict(LIMIT, 1.0)) and not spending()._holds(verdict(1.01 * LIMIT))


@pytest.mark.parametrize(
    ("made", "search_limit", "holds"),
    [
        (verdict(0.02, LIMIT), LIMIT, True),
        (verdict(0.02, 1.01 * LIMIT), LIMIT, False),  # the 95% interval ends beyond the limit
        (verdict(0.02), 0.02, True),
        (verdict(0.02), 0.019, False),  # further than the search itself may go
    ],
)
def test_with_passes_that_follow_it_keeps_a_distance(made: Verdict, search_limit: float, holds: bool) -> None:
    assert spending(then=True, search_limit=search_limit)._holds(made) == holds


def test_a_budget_in_another_unit_decides_alone() -> None:
    assert spending(then=True, metric="accuracy", search_limit=0.001)._holds(verdict(LIMIT, 1.0))


# --- when to stop ---


@pytest.mark.parametrize(
    ("share", "limit", "enough"),
    [(0.1, LIMIT, True), (0.1, 0.99 * LIMIT, False), (0.75, 0.01, True), (0.74, 0.01, False)],
)
def test_it_stops_at_its_own_limit_or_where_little_of_the_budget_is_left(
    share: float, limit: float, enough: bool
) -> None:
    assert spending()._is_enough(verdict(share * LIMIT), limit) == enough


@pytest.mark.parametrize(("share", "enough"), [(0.91, True), (0.89, False)])
def test_with_passes_that_follow_only_what_is_left_counts(share: float, enough: bool) -> None:
    assert spending(then=True)._is_enough(verdict(share * LIMIT), LIMIT) == enough


def test_a_budget_in_another_unit_is_spent_until_a_result_fails() -> None:
    assert not spending(metric="accuracy")._is_enough(verdict(LIMIT), 2 * LIMIT)


# --- by how much the limit moves ---


@pytest.mark.parametrize(("share", "factor"), [(0.0, 2.0), (0.4, 2.0), (0.8, 1.25), (0.99, 1.15)])
def test_a_limit_grows_by_what_is_left_of_the_budget_within_bounds(share: float, factor: float) -> None:
    assert spending()._loosening(verdict(share * LIMIT)) == pytest.approx(factor)


def test_a_limit_doubles_where_the_budget_has_another_unit() -> None:
    assert spending(metric="accuracy")._loosening(verdict(0.99 * LIMIT)) == 2.0


@pytest.mark.parametrize(
    ("then", "share", "factor"),
    [
        (False, 1.001, 0.95), (False, 1.2, 0.97 / 1.2), (False, 3.0, 0.5),
        (True, 1.001, 0.9), (True, 2.0, 0.97 / 2), (True, 9.0, 0.3),
    ],
)  # fmt: skip
def test_a_limit_shrinks_by_what_was_too_much_within_bounds(then: bool, share: float, factor: float) -> None:
    assert spending(then=then)._tightening(verdict(share * LIMIT)) == pytest.approx(factor)


@pytest.mark.parametrize("failed", [verdict(0.0, unseen=("w",)), verdict(math.inf), verdict(0.01, failed=True)])
def test_a_failure_that_is_no_matter_of_size_says_nothing_of_the_limit(failed: Verdict) -> None:
    assert spending()._tightening(failed) == spending(then=True)._tightening(failed) == STRICTER


# --- one weight that carries a failure ---

STRONGEST = {"v": STRONG, "w": STRONG}
BY_V = {("v", 1): 0.5, ("w", 1): 0.01}


def held_back(
    *,
    harm: Mapping[tuple[str, int | None], float] = BY_V,
    value: float = 0.51,
    failures: int = 1,
    before: int = 0,
    influence: float = 1.0,
) -> tuple[bool, Told, Table]:
    """Whether another weight may be tried after a failure with both weights at their strongest, within LIMIT by the
    search. failures, before: of this search so far, and for how many a weight was sought."""  # fmt: skip
    made = spending(then=True, harm=harm)
    made.mild, made.failures, made.held_back = {"v": MILD, "w": MILD}, failures, before
    made.table.influence["v", ANY_FAMILY] = influence
    told: Any = made.work
    return made._hold_back(trial(STRONGEST, value, 600), LIMIT), told, made.table


def test_a_weight_that_carries_a_failure_beyond_all_prediction_is_held_back() -> None:
    done, told, table = held_back()
    assert done and told.held_back == {"v": "kept at 8 bits"}
    assert table.options["v"] == [PLAIN, MILD] and STRONG in table.options["w"]


@pytest.mark.parametrize("influence", [0.49 / 3 / STRONG.error, 0.51 / 3 / STRONG.error])
def test_what_was_nearly_predicted_is_left_to_a_stricter_limit(influence: float) -> None:
    """Up to a third of the half that it harms."""
    done, told, _ = held_back(influence=influence)
    is_foreseen = 3 * influence * STRONG.error > 0.5
    assert done != is_foreseen and bool(told.held_back) != is_foreseen


@pytest.mark.parametrize(
    "given",
    [
        {"failures": 0},  # the first failure: most are of many weights
        {"before": 4},  # each takes a dozen evaluations
        {"value": 1.5 * LIMIT},  # the search can be so far off
    ],
)
def test_no_weight_is_sought_where_a_stricter_limit_may_do(given: dict[str, Any]) -> None:
    done, told, table = held_back(**given)
    assert not done and not told.seen and not told.held_back
    assert all(STRONG in options for options in table.options.values())


def test_the_last_search_for_a_weight_is_made() -> None:
    assert held_back(before=3)[0] and held_back(value=1.6 * LIMIT)[0]


def test_where_all_weights_harm_alike_none_is_held_back() -> None:
    done, told, _ = held_back(harm={("v", 1): 0.25, ("w", 1): 0.25})
    assert not done and told.seen and not told.held_back


# --- single changes, each with all that follows ---

START = {"v": MILD, "w": MILD}


def strengthened(value: float, **work: Any) -> tuple[Assignment, list[Assignment]]:
    """What becomes of both weights at their milder option, with that divergence, and what was tried for it."""
    found = spending(then=True, **work)
    told: Any = found.work
    return found._strengthened(trial(START, value, 1200)).assignment, told.seen


def test_single_changes_that_hold_are_kept_and_refuted_ones_not_tried_again() -> None:
    harm = {("v", 0): 0.004, ("w", 0): 0.004, ("v", 1): 0.05, ("w", 1): 0.006}
    best, seen = strengthened(0.008, harm=harm)
    assert best == {"v": MILD, "w": STRONG}
    assert seen == [{"v": STRONG, "w": MILD}, {"v": MILD, "w": STRONG}]


def test_both_weights_become_strong_where_that_holds() -> None:
    best, seen = strengthened(0.008, harm={("v", 0): 0.004, ("w", 0): 0.004, ("v", 1): 0.006, ("w", 1): 0.006})
    assert best == {"v": STRONG, "w": STRONG} and len(seen) == 2


@pytest.mark.parametrize(("share", "tried"), [(0.79, True), (0.81, False)])
def test_a_change_is_tried_that_should_fit_into_what_is_left(share: float, tried: bool) -> None:
    """It should add 0.3 of what both take up by prediction; 1 / share - 1 and a twentieth more is left."""
    harm = {("v", 0): 0.0, ("w", 0): 0.0, ("v", 1): 1.0, ("w", 1): 1.0}
    best, seen = strengthened(share * LIMIT, harm=harm)
    assert best == START and bool(seen) == tried


def test_after_the_deadline_no_change_is_tried() -> None:
    assert strengthened(0.008, deadline=-math.inf) == (START, [])


# --- what trials promise ---


def many(seed: int, count: int = 4) -> tuple[Spending, dict[str, float]]:
    """Weights whose errors cost far more or less than predicted; by weight the share of the budget that they take up
    for a predicted divergence of one."""
    rng = np.random.default_rng(seed)
    names = [f"w{index}" for index in range(count)]
    sizes = dict(zip(names, (rng.integers(1, 40, count) ** 2 * 100).tolist(), strict=True))
    bits = enumerate((8, 6, 5, 4, 3.2, 3, 2, 1.5))
    strengths = [(at, each, 2.0 ** (-2 * each)) for at, each in bits]
    table = Table({
        name: [
            WeightOption(None, 32 * size, 0.0),
            *(WeightOption(at, round(each * size), error) for at, each, error in strengths),
        ]
        for name, size in sizes.items()
    })  # fmt: skip
    table.influence = {(name, ANY_FAMILY): 1.0 for name in names}
    true = dict(zip(names, (20 * 2.0 ** rng.normal(0, 1.0, count)).tolist(), strict=True))
    harm = {
        (name, each.choice): LIMIT * true[name] * each.error
        for name, options in table.options.items()
        for each in options
    }
    verifier: Any = SimpleNamespace(limit=LIMIT, search_limit=LIMIT, metric="divergence")
    told: Any = Told(SimpleNamespace(then=("a pass that repairs",)), verifier, harm=harm)
    return Spending(told, Context(), table, {}, verifier, None), true


def cheapest(table: Table, true: Mapping[str, float]) -> float:
    """Of every assignment that the budget bears."""
    every = itertools.product(*table.options.values())
    shares = [true[name] for name in table.options]
    return min(
        sum(each.size_bytes for each in found)
        for found in every
        if sum(share * each.error for share, each in zip(shares, found, strict=True)) <= 1
    )


def test_trials_teach_what_enumeration_finds() -> None:
    """From the mildest change of all, within so many trials as are made of small models."""
    excess = []
    for seed in range(12):
        found, true = many(seed)
        table = found.table
        start = found._tried({name: options[1] for name, options in table.options.items()})
        best, tried = found._learned(start, 10)
        assert tried <= 10 and best.verdict.passed
        excess.append(best.cost / cheapest(table, true) - 1)
    assert max(excess) < 0.2 and np.mean(excess) < 0.04


def test_experience_is_one_factor_at_first_and_tells_weights_apart_later() -> None:
    found, true = many(0)
    table, told = found.table, Experience()
    assert told.factors(table) == {}
    rng = np.random.default_rng(1)
    drawn = [{name: options[rng.integers(3, 7)] for name, options in table.options.items()} for _ in range(40)]
    shares = [sum(true[name] * option.error for name, option in each.items()) for each in drawn]
    told.note(drawn[0], shares[0])
    told.note(drawn[0], math.inf)
    first = shares[0] / sum(option.error for option in drawn[0].values())
    assert told.factors(table) == pytest.approx(dict.fromkeys(told.factors(table), first))
    for each, spent in zip(drawn[1:], shares[1:], strict=True):
        told.note(each, spent)
    factors = told.factors(table)
    for name, options in table.options.items():
        for each in options[3:7]:
            assert factors[name, each.choice] == pytest.approx(true[name], rel=0.3)


def test_an_option_that_fails_alone_tells_little_of_the_weights_others() -> None:
    """The strong option of "v" does twenty times what was predicted."""
    table = spending().table
    told = Experience(
        [({"v": MILD, "w": MILD}, 0.1), ({"v": MILD, "w": STRONG}, 0.13), ({"v": STRONG, "w": MILD}, 2.6)]
    )
    factors = told.factors(table)
    predicted = {each: factors["v", each.choice] * each.error for each in (MILD, STRONG)}
    assert predicted[STRONG] > 1 and predicted[MILD] < 0.3


def test_what_has_to_hold_counts_as_spent() -> None:
    assert spending(then=True)._spent(verdict(0.015, 0.03)) == pytest.approx(1.0)


def test_what_failed_is_not_made_again_and_what_held_is() -> None:
    made = spending(then=True, harm={("v", 0): 0.004, ("w", 0): 0.004, ("v", 1): 0.05, ("w", 1): 0.006})
    told: Any = made.work
    for _ in range(2):
        assert made._tried({"v": STRONG, "w": MILD}).verdict.divergence == pytest.approx(0.054)
        assert made._tried(START).verdict.divergence == pytest.approx(0.008)
    assert told.seen == [{"v": STRONG, "w": MILD}, START, START]


def test_what_trials_promise_is_cheaper_by_more_than_a_little_and_new() -> None:
    """Both strong takes up nine tenths of the budget, by what mild ones took; without a trial nothing is promised."""
    made = spending(then=True, harm={("v", 0): 0.009, ("w", 0): 0.009, ("v", 1): 0.0144, ("w", 1): 0.0144})
    assert made._promised(trial(START, 0.018, 1200)) is None
    best = made._tried(START)
    assert made._promised(best) == {"v": STRONG, "w": STRONG}
    assert made._promised(trial(START, 0.018, 600)) is None
    assert made._learned(best, 5)[0].assignment == {"v": STRONG, "w": STRONG}
    made.work.deadline = -math.inf
    assert made._learned(best, 5) == (best, 0)


def test_next_to_the_cheapest_the_one_with_much_less_divergence_is_taken() -> None:
    """All of the budget is worth a hundredth of the cost."""
    made = spending(
        then=True, harm={("v", 0): 0.001, ("w", 0): 0.001, ("v", 1): 0.027, ("w", 1): 0.027, ("w", None): 0.0}
    )
    one, other = {"v": MILD, "w": MILD}, {"v": STRONG, "w": MILD}
    made._tried(one)
    assert made._worth_most(made._tried(other)).assignment == other  # 300 of 1200 are worth it
    made.held = {key: replace(each, cost=1200.0 - 8 * (each.assignment == other)) for key, each in made.held.items()}
    assert made._worth_most(made.held[1, 0]).assignment == one  # 8 are not
    made.work.deadline = -math.inf
    assert made._worth_most(made.held[1, 0]).assignment == other
