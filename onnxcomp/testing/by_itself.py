"""The check of passes that change weights one by one: what they make of one is the same wherever it is made."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

import numpy as np

from onnxcomp.contract import Context, Outcome
from onnxcomp.contract.weight_pass import WeightPass
from onnxcomp.graph.stored.opening import is_stored, open_plain
from onnxcomp.graph.weights.alone import LoneWeight
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.model import load
from onnxcomp.pipeline.apply import opened_for
from onnxcomp.testing.applying import Applied, calibration_of, context_for
from onnxcomp.testing.rules import Rule
from onnxcomp.testing.trial import BY_ITSELF, Sample, Trial, attempt

SENT = Rule(
    BY_ITSELF.name,
    "what prepare gives for a weight can be sent to another process",
    "give arrays, numbers and dataclasses of them, and nothing of the graph",
)
EVERY = 13


def check_by_itself(trial: Trial) -> None:
    """A weight by itself, with the nodes that read it, gets the values and the words that it gets in its model."""
    rewrite = cast(WeightPass, trial.eagerest)
    for sample in trial.some(EVERY):
        for data in _data(rewrite, sample):
            done = trial.apply(sample, rewrite, **data)
            context = context_for(load(sample.proto), rewrite, sample.feeds, **data)
            _expect_the_same(trial, sample, rewrite, done, context)


def _data(rewrite: WeightPass, sample: Sample) -> Iterator[dict[str, Any]]:
    """Without data, where the pass does without, and with some, where it draws on them."""
    yield {}
    if rewrite.draws_on_data(calibration=True):
        yield {"calibration": calibration_of(sample.proto, sample.feeds)}


def _expect_the_same(trial: Trial, sample: Sample, rewrite: WeightPass, done: Applied, context: Context) -> None:
    graph = opened_for(rewrite, load(sample.proto))
    able = [each for each in context.editable_weights(graph, Outcome()) if rewrite.obstacle(each) is None]
    known = attempt(rewrite, sample.name, partial(rewrite.prepare, graph, able, context))
    there = {each.name: each for each in weights(open_plain(done.after))}
    said: dict[str, Any] = {each.name: each for each in done.outcome.changed}
    said |= {each.name: each for each in done.outcome.skipped}
    for weight in able:
        where = f"{weight.name}, {sample.name}"
        own, told = _by_itself(trial, rewrite, weight, _sent(trial, known, weight.name, where), context, where)
        BY_ITSELF.expect(told == [said.get(weight.name)], trial.kind, f"another outcome by itself for {where}")
        same = np.asarray(own.values).tobytes() == np.asarray(there[weight.name].values).tobytes()
        BY_ITSELF.expect(same, trial.kind, f"other values by itself for {where}")
        alike = is_stored(there[weight.name].tensor) or _content(own) == _content(there[weight.name])
        BY_ITSELF.expect(alike, trial.kind, f"another encoding by itself for {where}")


def _sent(trial: Trial, known: Mapping[str, Any], name: str, where: str) -> Any:
    try:
        return pickle.loads(pickle.dumps(known.get(name)))
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise SENT.broken(trial.kind, f"prepare gives a {type(known[name]).__name__} for {where}: {error}") from error


def _by_itself(
    trial: Trial, rewrite: WeightPass, weight: Weight, known: Any, context: Context, where: str
) -> tuple[Weight, list[Any]]:
    """What the pass makes of the weight in a graph of its own, and what it says."""
    lone: LoneWeight = pickle.loads(pickle.dumps(LoneWeight.of(weight)))
    own, outcome = lone.opened(), Outcome()
    BY_ITSELF.expect(rewrite.obstacle(own) is None, trial.kind, f"an obstacle by itself for {where}")
    try:
        rewrite.edit(own, known, context.alone(), outcome)
    except Exception as error:
        raise BY_ITSELF.broken(trial.kind, f"{type(error).__name__} by itself for {where}: {error}") from error
    return own, [*outcome.changed, *outcome.skipped]


def _content(weight: Weight) -> str:
    return "" if weight.encoding is None else json.dumps(weight.encoding.to_dict())
