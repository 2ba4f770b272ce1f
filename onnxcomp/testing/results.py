"""Checks of what a pass makes of models: exact as declared, the same each time, and said."""

from __future__ import annotations

import itertools
from collections.abc import Collection

import numpy as np
import onnx

from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.stored.opening import is_stored, open_plain
from onnxcomp.model import Model
from onnxcomp.testing.applying import Applied, variants
from onnxcomp.testing.promises import assert_exact_to_the_bit, assert_keeps_promises, content_of
from onnxcomp.testing.rules import Rule
from onnxcomp.testing.trial import Sample, Trial

BARE = {
    "a model of one Identity": ("g (float[N, 4] x) => (float[N, 4] y) { y = Identity(x) }", np.ones((2, 4), "float32")),
    "a model without floats": ("g (int64[N] x) => (int64[N] y) { y = Add(x, x) }", np.arange(3)),
    "a model of strings": ("g (string[N] x) => (string[N] y) { y = Identity(x) }", np.array(["a", ""], object)),
    "a model with an empty weight": (
        "g (float[N, 0] x) => (float[N, 3] y) <float[0, 3] w = {}> { y = MatMul(x, w) }", np.ones((2, 0), "float32")
    ),
}  # fmt: skip

ACTS = Rule(
    "acts",
    "the pass changes something in some model",
    "look at why each site is left alone (outcome.skipped); where drawn models have none of its sites, give models "
    "that do: check_pass(kind, samples=[Sample.of(model)])",
)
DETERMINISM = Rule(
    "determinism",
    "the same model, seed and data give the same bytes and the same outcome",
    "take randomness from context.rng(name) only, go through sets in sorted order, and keep no state on the class",
)
INPUT = Rule(
    "input kept",
    "the model that the graph was opened from is never written",
    "copy values before they are changed: np.array(weight.values)",
)
OUTCOME = Rule(
    "outcome",
    "the outcome names each change and says why something was left alone; nothing is both",
    "give outcome.change(name, what) and outcome.skip(name, reason) words, and call one of them for each name",
)
ENCODINGS = Rule(
    "encodings",
    "an encoding decodes to the weight's values, bit for bit",
    "take the values from the encoding's own decode: weight.set(encoding.decode(codes, shape), encoding)",
)


def check_survives(trial: Trial) -> None:
    """Models in which there is nothing to do are no reason to fail."""
    for name, (body, given) in BARE.items():
        proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {body}')
        sample = Sample.of(proto, name=name, feeds={"x": given})
        done = trial.apply(sample, trial.eagerest)
        assert_keeps_promises(done, sample.feeds, sample.outputs, where=name)


def check_acts(trial: Trial) -> None:
    """It changes something in some model; one that trains needs more samples than the two that each model has here."""
    if trial.kind.trains:
        return
    skipped: list[str] = []
    for _, done in trial.applications():
        if done.outcome.changed:
            return
        skipped += [each.reason for each in done.outcome.skipped]
    said = f"; it skipped: {skipped[0]}" if skipped else ""
    raise ACTS.broken(trial.kind, f"nothing was changed in {len(trial.samples)} models{said}")


def check_result(trial: Trial) -> None:
    """What the eager pass makes of each model is valid, and as exact as declared."""
    for sample, done in trial.applications():
        expect_as_declared(done, sample)


def check_choices(trial: Trial) -> None:
    """So is what each choice and switch makes: the choices take turns; all meet all models where that is asked for."""
    chosen = [each for each in variants(trial.kind) if each != trial.eagerest]
    in_turn = zip(trial.samples, itertools.cycle(chosen), strict=False)
    turns = itertools.product(trial.samples, chosen) if trial.thorough else in_turn
    for sample, rewrite in turns:
        expect_as_declared(trial.apply(sample, rewrite), sample)


def expect_as_declared(done: Applied, sample: Sample) -> None:
    """Valid, and as exact as the pass says."""
    assert_keeps_promises(done, sample.feeds, sample.outputs, where=sample.name)
    if done.rewrite.effect.is_exact and not done.rewrite.effect.rounding:
        assert_exact_to_the_bit(done, sample.feeds, where=sample.name)


def check_determinism(trial: Trial) -> None:
    """A second time gives the same bytes."""
    for sample, first in trial.applications(7):
        second = trial.apply(sample, trial.eagerest)
        DETERMINISM.expect(first.content == second.content, trial.kind, f"other bytes the second time, {sample.name}")
        said = [(each.changed, each.skipped, each.origins.keys()) for each in (first.outcome, second.outcome)]
        DETERMINISM.expect(said[0] == said[1], trial.kind, f"another outcome the second time, {sample.name}")


def check_input_kept(trial: Trial) -> None:
    """The model before is as it was."""
    for sample, done in trial.applications(5):
        same = content_of(done.before.proto) == content_of(sample.proto)
        INPUT.expect(same, trial.kind, f"{sample.name} was changed itself")


def check_outcome(trial: Trial) -> None:
    """Changes and skips have names and words, and nothing is both."""
    for sample, done in trial.applications(5):
        changed, skipped = done.outcome.changed, done.outcome.skipped
        worded = all(each.name and each.what for each in changed) and all(each.name and each.reason for each in skipped)
        OUTCOME.expect(worded, trial.kind, f"a change or a skip without a name or without words, {sample.name}")
        both = done.names & {each.name for each in skipped}
        OUTCOME.expect(not both, trial.kind, f"{sorted(both)} both changed and skipped, {sample.name}")


def check_encodings(trial: Trial) -> None:
    """Each encoding makes the values of its weight."""
    for sample, done in trial.applications():
        constants = constants_of(done.after) if done.after.encodings else {}
        for key, encoding in done.after.encodings.items():
            values = constants[key]
            codes = encoding.encode(values)
            decoded = None if codes is None else encoding.decode(codes, values.shape)
            same = decoded is not None and decoded.dtype == values.dtype and decoded.tobytes() == values.tobytes()
            ENCODINGS.expect(same, trial.kind, f"the {encoding.kind} of {key} makes other values, {sample.name}")


def stored_among(model: Model, names: Collection[str]) -> bool:
    """Whether a decoder makes one of these weights: with other values it is plain in the file, and stays so."""
    return any(is_stored(each) for key, each in constants_by_key(open_plain(model)).items() if key in names)


def constants_of(model: Model) -> dict[str, np.ndarray]:
    """The values of every constant, under the name that is unique in the model."""
    return {key: np.asarray(each.values, order="C") for key, each in constants_by_key(open_graph(model)).items()}
