"""Checks of what may be touched: what is excluded and included, how much time there is, what is taken back."""

from __future__ import annotations

import glob
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.contract import Context, SitePass
from onnxcomp.graph.weights.roles import compose
from onnxcomp.pipeline.apply import only_values
from onnxcomp.testing.applying import Applied
from onnxcomp.testing.promises import assert_keeps_promises
from onnxcomp.testing.results import constants_of, stored_among
from onnxcomp.testing.rules import Rule
from onnxcomp.testing.trial import Sample, Trial

EXCLUDED = Rule(
    "exclude",
    "what the user excludes by the name of a weight or node is left alone",
    "ask context.selects(name, *names_of_its_nodes) before each site, or take weights from context.editable_weights",
)
INCLUDED = Rule(
    "include",
    "where context.include is given nothing else is touched: taking back and searching use it",
    "ask context.selects(name, *names_of_its_nodes) before each site, with the name that outcome.change gets",
)
DEADLINE = Rule(
    "deadline",
    "a long pass stops between two sites once context.is_over(), keeps what is done, and says so",
    "in the loop over sites: if context.is_over(): outcome.is_cut_short = True; break",
)
TAKEN_BACK = Rule(
    "taking back",
    "a weight whose values alone were changed is what it was once its old values are put back",
    "name weights as roles.Weight.name does, and change nothing of the graph beside their values",
)


def check_exclude_all(trial: Trial) -> None:
    """With everything excluded nothing is changed."""
    for sample in trial.some(7):
        done = trial.apply(sample, trial.eagerest, exclude=("*",))
        found = f"{sorted(done.names)} changed though exclude is '*', {sample.name}"
        EXCLUDED.expect(not done.outcome.changed, trial.kind, found)
        assert_keeps_promises(done, sample.feeds, sample.outputs, where=sample.name)


def check_exclude(trial: Trial) -> None:
    """What is excluded by name is left alone, and the rest stays as exact as declared."""
    for sample, done in trial.applications(5):
        for excluded in sorted(done.names)[: trial.names_at_once]:
            again = trial.apply(sample, trial.eagerest, exclude=(glob.escape(excluded),))
            found = f"{excluded} changed though it is excluded, {sample.name}"
            EXCLUDED.expect(excluded not in again.names, trial.kind, found)
            assert_keeps_promises(again, sample.feeds, sample.outputs, where=f"{sample.name} without {excluded}")
            old = constants_of(again.before)
            if excluded in old:
                new = constants_of(again.after).get(excluded)
                same = new is not None and np.array_equal(new, old[excluded], equal_nan=new.dtype.kind == "f")
                EXCLUDED.expect(same, trial.kind, f"{excluded} has other values though it is excluded, {sample.name}")


def check_include(trial: Trial) -> None:
    """Nothing is touched but what is included."""
    for sample, done in trial.applications(5):
        for included in sorted(done.names)[: trial.names_at_once]:
            again = trial.apply(sample, trial.eagerest, include=frozenset({included}))
            found = f"{sorted(again.names - {included})} changed where only {included} is included, {sample.name}"
            INCLUDED.expect(again.names <= {included}, trial.kind, found)
            assert_keeps_promises(again, sample.feeds, sample.outputs, where=f"{sample.name}, {included} only")


@dataclass(frozen=True)
class Hurried(Context):
    """A context whose deadline comes once it was looked at a number of times. asked: an entry for each look."""

    looks: int = 0
    asked: list[None] = field(default_factory=list)

    def is_over(self) -> bool:
        self.asked.append(None)
        return len(self.asked) > self.looks


def check_deadline(trial: Trial) -> None:
    """With no time left, and with time for one site, the pass does less, says so, and what it did is as declared."""
    for sample, done in trial.applications(19):
        for looks in (0, 1) if done.outcome.changed else ():
            asked: list[None] = []
            hurried = trial.apply(sample, trial.eagerest, context=Hurried, looks=looks, asked=asked)
            _expect_less(trial, sample, done, hurried, looks=looks, is_asked=bool(asked))
            assert_keeps_promises(hurried, sample.feeds, sample.outputs, where=f"{sample.name} in a hurry")


def _expect_less(trial: Trial, sample: Sample, done: Applied, hurried: Applied, *, looks: int, is_asked: bool) -> None:
    kind, less = trial.kind, hurried.names
    long = issubclass(kind, SitePass) and kind.strength() is not None
    DEADLINE.expect(is_asked or not long, kind, f"context.is_over() is never asked, {sample.name}")
    DEADLINE.expect(less <= done.names, kind, f"{sorted(less - done.names)} changed in a hurry only, {sample.name}")
    told = hurried.outcome.is_cut_short or less == done.names
    DEADLINE.expect(told, kind, f"{sorted(done.names - less)} left out, and is_cut_short is not set, {sample.name}")
    late = long and looks == 0 and less
    DEADLINE.expect(not late, kind, f"{sorted(less)} changed when the deadline had come before, {sample.name}")


def check_taking_back(trial: Trial) -> None:
    """Where only values were changed, putting them back one by one restores the weights."""
    for sample, done in trial.applications(5):
        names = sorted(done.names)
        if names and only_values(done.before, done.after, names) and not stored_among(done.before, names):
            _expect_restored(trial, sample, done, names)


def _expect_restored(trial: Trial, sample: Sample, done: Applied, names: list[str]) -> None:
    old, new = constants_of(done.before), constants_of(done.after)
    one = constants_of(compose(done.after, {names[0]: done.before}))
    for key, values in one.items():
        as_it_should = old[key] if key == names[0] else new[key]
        found = f"{key} is something else once {names[0]} is put back, {sample.name}"
        TAKEN_BACK.expect(values.tobytes() == as_it_should.tobytes(), trial.kind, found)
    whole = compose(done.after, dict.fromkeys(names, done.before))
    TAKEN_BACK.expect(whole.encodings.keys().isdisjoint(names), trial.kind, f"encodings stay behind, {sample.name}")
    stays = sorted(key for key, values in constants_of(whole).items() if values.tobytes() != old[key].tobytes())
    TAKEN_BACK.expect(not stays, trial.kind, f"{stays} differ once {names} are put back, {sample.name}")
