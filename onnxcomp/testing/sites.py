"""Checks of passes that act at sites: what can be chosen is all that they do, and a choice does nothing else."""

from __future__ import annotations

import glob
from functools import partial

import numpy as np

from onnxcomp.contract import Choice, Context, Site, SitePass, own_choice
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import close_graph
from onnxcomp.graph.weights.roles import compose
from onnxcomp.model import Model
from onnxcomp.pipeline.apply import opened_for
from onnxcomp.testing.applying import Applied
from onnxcomp.testing.promises import assert_keeps_promises, content_of
from onnxcomp.testing.results import constants_of, stored_among
from onnxcomp.testing.rules import Rule
from onnxcomp.testing.trial import Sample, Trial, attempt

LOOKING = Rule(
    "looking at sites",
    "sites() leaves the graph as it is, and names each site once",
    "edit in rewrite only; where sites needs an edited graph, let it look at a copy: open_graph(close_graph(graph))",
)
COVERED = Rule(
    "sites cover",
    "each thing that apply changes is a site, under the name that outcome.change gets",
    "let apply and sites find their places by one function, and name them alike",
)
TOUCHED = Rule(
    "touches",
    "a site is left alone where one of the names that it touches is excluded",
    "ask context.selects(site.name, *site.touches)",
)
OWN = Rule(
    "own choice",
    "apply is rewrite with all sites at the pass's own fields",
    "leave apply to SitePass, or let it find the same places as sites and hand them to rewrite",
)
SUBSET = Rule(
    "subsets",
    "rewrite acts at the chosen sites and at no others",
    "go through the names of the choice only, and through self.by_fields(choice) for their fields",
)
OPTIONS = Rule(
    "options",
    "each option of a site can be chosen, mildest first: what follows costs no more and errs no less",
    "give fields that self.at takes and rewrite can act on, in the order in which they compress harder",
)
ALONE = Rule(
    "weights alone",
    "a pass that changes weights one by one changes their values, and nothing but those of the weights that it names",
    "set values by weight.set, name each by outcome.change(weight.name, what), and let composes() say False otherwise",
)
EVERY = 13
# ONNX Runtime computes in another order where fewer tensors are asked for, and a scale that is fitted to them and kept
# in float16 may then be rounded the other way: by 2^-11.
ON_DATA = 2.0**-10


def check_sites(trial: Trial) -> None:
    """What apply changes are sites; finding them leaves the graph as it is."""
    for (sample, rewrite, model, context), (_, done) in zip(
        trial.sitings(EVERY), trial.applications(EVERY), strict=True
    ):
        graph = opened_for(rewrite, model)
        survey = attempt(rewrite, sample.name, partial(rewrite.sites, graph, context))
        same = content_of(close_graph(graph).proto) == content_of(sample.proto)
        LOOKING.expect(same, trial.kind, f"sites() changed {sample.name}")
        names = [each.name for each in survey.sites]
        LOOKING.expect(len(set(names)) == len(names), trial.kind, f"a site twice among {names}, {sample.name}")
        missing = sorted(done.names - set(names))
        COVERED.expect(not missing, trial.kind, f"apply changed {missing}, which are no sites, {sample.name}")


def check_own_choice(trial: Trial) -> None:
    """All sites at the pass's own fields are what apply makes."""
    for (sample, rewrite, model, context), (_, done) in zip(
        trial.sitings(EVERY), trial.applications(EVERY), strict=True
    ):
        chosen = own_choice(_sites(rewrite, model, context, sample))
        again = _rewritten(trial, sample, rewrite, chosen)
        other = sorted(again.names ^ done.names)
        OWN.expect(not other, trial.kind, f"{other} changed by one of them only, {sample.name}")
        OWN.expect(again.content == done.content, trial.kind, f"other bytes by rewrite than by apply, {sample.name}")


def check_subsets(trial: Trial) -> None:
    """Every second site alone: the others stay, and those that are chosen become what they become among all."""
    for (sample, rewrite, model, context), (_, done) in zip(
        trial.sitings(EVERY), trial.applications(EVERY), strict=True
    ):
        names = [each.name for each in _sites(rewrite, model, context, sample)]
        for chosen in (names[::2], names[1::2]) if len(names) > 1 else ([],):
            part = _rewritten(trial, sample, rewrite, own_choice(chosen))
            beyond = sorted(part.names - set(chosen))
            SUBSET.expect(not beyond, trial.kind, f"{beyond} changed where {chosen} is chosen, {sample.name}")
            assert_keeps_promises(part, sample.feeds, sample.outputs, where=f"{sample.name}, {chosen} chosen")
            _expect_others_kept(trial, sample, part, set(names) - set(chosen))
            if rewrite.composes():
                _expect_composed(trial, sample, part, done, chosen)


def check_touches(trial: Trial) -> None:
    """A site is left alone where a node that it touches is excluded."""
    for sample, rewrite, model, context in trial.sitings(2 * EVERY):
        for site in [each for each in _sites(rewrite, model, context, sample) if each.touches][:1]:
            done = trial.apply(sample, rewrite, exclude=(glob.escape(site.touches[0]),))
            found = f"{site.name} changed though {site.touches[0]} is excluded, {sample.name}"
            TOUCHED.expect(site.name not in done.names, trial.kind, found)


def check_options(trial: Trial) -> None:
    """Options are in order, and the first and the last of a model's can be chosen."""
    for sample, rewrite, model, context in trial.sitings(2 * EVERY):
        sites = _sites(rewrite, model, context, sample)
        for site in sites:
            _expect_in_order(trial, sample, site)
        for at in (0, -1) if any(len(each.options) > 1 for each in sites) else ():
            chosen = {each.name: each.options[at].fields for each in sites}
            done = _rewritten(trial, sample, rewrite, chosen)
            OPTIONS.expect(done.names <= chosen.keys(), trial.kind, f"{done.names} changed of {chosen}, {sample.name}")
            assert_keeps_promises(done, sample.feeds, sample.outputs, where=f"{sample.name}, {chosen} chosen")


def check_weights_alone(trial: Trial) -> None:
    """With the named weights put back the model is the model of before: graph, other weights, everything."""
    for sample, done in trial.applications(3):
        old, new = constants_of(done.before), constants_of(done.after)
        other = sorted(old.keys() ^ new.keys())
        ALONE.expect(not other, trial.kind, f"constants {other} before or after only, {sample.name}")
        odd = sorted(key for key in old if old[key].tobytes() != new[key].tobytes() and key not in done.names)
        ALONE.expect(not odd, trial.kind, f"{odd} changed and not named in the outcome, {sample.name}")
        if stored_among(done.before, done.names):
            continue
        whole = compose(done.after, dict.fromkeys(done.names, done.before))
        same = content_of(whole.proto) == content_of(done.before.proto)
        ALONE.expect(same, trial.kind, f"more than the values of {sorted(done.names)} changed, {sample.name}")


def _sites(rewrite: SitePass, model: Model, context: Context, sample: Sample) -> tuple[Site, ...]:
    return attempt(rewrite, sample.name, lambda: rewrite.sites(opened_for(rewrite, model), context)).sites


def _rewritten(trial: Trial, sample: Sample, rewrite: SitePass, chosen: Choice) -> Applied:
    return trial.edit(sample, rewrite, lambda graph, context: rewrite.rewrite(graph, chosen, context))


def _expect_others_kept(trial: Trial, sample: Sample, part: Applied, others: set[str]) -> None:
    """Constants that are sites and not chosen have the values that they had."""
    old, new = constants_of(part.before), constants_of(part.after)
    odd = sorted(key for key in others & old.keys() if key not in new or old[key].tobytes() != new[key].tobytes())
    SUBSET.expect(not odd, trial.kind, f"{odd} have other values though they were not chosen, {sample.name}")


def _expect_composed(trial: Trial, sample: Sample, part: Applied, done: Applied, chosen: list[str]) -> None:
    """A weight's values depend on its own choice only."""
    one, whole = constants_of(part.after), constants_of(done.after)
    share = ON_DATA if trial.eagerest.draws_on_data(calibration=True) else 0.0
    odd = [key for key in chosen if key in one and not _alike(one[key], whole[key], share)]
    found = f"{odd} get other values without the other sites, though composes() is True, {sample.name}"
    ALONE.expect(not odd, trial.kind, found)


def _alike(one: Array, other: Array, share: float) -> bool:
    """Whether they differ in no bit, or by no more than a share of the largest value."""
    if one.tobytes() == other.tobytes():
        return True
    return one.dtype == other.dtype and bool(np.allclose(one, other, rtol=0, atol=share * np.abs(other).max(initial=0)))


def _expect_in_order(trial: Trial, sample: Sample, site: Site) -> None:
    for before, after in zip(site.options, site.options[1:], strict=False):
        known = before.costs.keys() & after.costs.keys()
        dearer = [str(each) for each in known if after.costs[each] > before.costs[each]]
        where = f"{dict(after.fields)} after {dict(before.fields)} at {site.name}, {sample.name}"
        OPTIONS.expect(not dearer, trial.kind, f"more {', '.join(dearer)} for {where}")
        nearer = before.error is not None and after.error is not None and after.error < before.error * (1 - 1e-6)
        OPTIONS.expect(not nearer, trial.kind, f"a smaller error for {where}")
