"""Every pass on models that people trained and exported, alone and in pairs: none breaks, and exact ones are exact.

The models are those of models/. Every .onnx below the folder that ONNXCOMP_MORE_MODELS names is tried, too, on random
inputs. All pairs take half an hour: they run with ONNXCOMP_THOROUGH set (`make test-thorough`).
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Pass
from onnxcomp.errors import RecipeError
from onnxcomp.graph.provenance import Reference
from onnxcomp.model import Model, load
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass, pass_names
from onnxcomp.runtime import Session
from onnxcomp.testing.applying import Applied, apply, eager, variants
from onnxcomp.testing.comparing import Feeds, run
from onnxcomp.testing.promises import assert_exact_to_the_bit, assert_keeps_promises
from tests.sampling import one_in

FOLDER = Path(__file__).parent.parent / "models"
MODELS = {each["file"]: each["calibration"] for each in tomllib.loads((FOLDER / "manifest.toml").read_text())["model"]}
MORE = Path(os.environ.get("ONNXCOMP_MORE_MODELS") or os.devnull)
SAMPLES, BATCH = 4, 2
SAMPLED_PAIRS = 14

MORE_MODELS = sorted(str(path.relative_to(MORE)) for path in MORE.rglob("*.onnx"))
NO_MORE = pytest.param("", marks=pytest.mark.skip(reason="name a folder with models by ONNXCOMP_MORE_MODELS"))

EACH_MODEL = pytest.mark.parametrize("file", MODELS)
EACH_PASS = pytest.mark.parametrize("name", pass_names())
THOROUGH = pytest.mark.skipif("ONNXCOMP_THOROUGH" not in os.environ, reason="takes half an hour: make test-thorough")
EACH_FURTHER_MODEL = pytest.mark.parametrize("file", MORE_MODELS or [NO_MORE])


@dataclass(frozen=True)
class Real:
    """A model, samples to calibrate with, the first batch of them and what the model gives for it."""

    model: Model
    data: CalibrationData
    feeds: Feeds
    outputs: Feeds


@functools.cache
def real(file: str) -> Real:
    """A model of models/ on its own calibration data."""
    session = Session(FOLDER / file)
    source = FOLDER / MODELS[file]
    return _real(FOLDER / file, CalibrationData.open(source, session.inputs, run=session.run, batch_size=BATCH))


@functools.lru_cache(maxsize=1)  # the largest take 90 MB
def further(file: str) -> Real:
    """A model of the other folder on random inputs."""
    session = Session(MORE / file)
    return _real(MORE / file, CalibrationData.random(session.inputs, run=session.run, batches=SAMPLES))


def _real(path: Path, data: CalibrationData) -> Real:
    proto = onnx.load(path)
    feeds = next(data.batches())
    return Real(load(proto), data.first(SAMPLES), feeds, run(proto, feeds))


def eagerly(name: str) -> Pass:
    kind = get_pass(name)
    return kind(**eager(kind))


def check(source: Model, rewrite: Pass, on: Real, expected: Feeds, where: str, **context: Any) -> Applied:
    """Apply the pass and hold it to what it declares."""
    done = apply(source, rewrite, on.feeds, calibration=on.data, **context)
    assert_keeps_promises(done, on.feeds, expected, where=where)
    if rewrite.effect.is_exact and not rewrite.effect.rounding and done.outcome.changed:
        assert_exact_to_the_bit(done, on.feeds, where=where)
    return done


def check_pairs(first: str, seconds: Sequence[str], on: Real) -> None:
    """The second pass after the first, as a recipe has them; pairs that a recipe refuses are left out."""
    one = apply(on.model, eagerly(first), on.feeds, calibration=on.data)
    if not one.outcome.changed:
        return
    middle = run(onnx.load_from_string(one.content), on.feeds)
    for second in seconds:
        try:
            Recipe.of(eagerly(first), eagerly(second))
        except RecipeError:
            continue
        reference = Reference(on.model, one.outcome.origins)
        check(one.after, eagerly(second), on, middle, f"{first}, {second}", reference=reference)


def sampled_pairs() -> list[tuple[str, str]]:
    """Some ordered pairs of passes, the same every time."""
    return random.Random(0).sample(list(itertools.permutations(pass_names(), 2)), SAMPLED_PAIRS)


@one_in(3, name=pass_names(), file=MODELS)
def test_pass_alone(name: str, file: str) -> None:
    on = real(file)
    check(on.model, eagerly(name), on, on.outputs, f"{name} on {file}")


@pytest.mark.parametrize(
    ("file", "first", "second"),
    [(file, *pair) for file, pair in zip(itertools.cycle(MODELS), sampled_pairs(), strict=False)],
)
def test_sampled_pairs(file: str, first: str, second: str) -> None:
    check_pairs(first, [second], real(file))


@pytest.mark.slow
@THOROUGH
@EACH_MODEL
@EACH_PASS
def test_every_choice_of_the_pass(name: str, file: str) -> None:
    on = real(file)
    for rewrite in variants(get_pass(name)):
        check(on.model, rewrite, on, on.outputs, f"{rewrite} on {file}")


@pytest.mark.slow
@THOROUGH
@EACH_MODEL
@pytest.mark.parametrize("first", pass_names())
def test_every_pair(first: str, file: str) -> None:
    check_pairs(first, pass_names(), real(file))


@pytest.mark.slow
@EACH_PASS
@EACH_FURTHER_MODEL  # the lowest changes last: each model is read once
def test_pass_alone_on_a_further_model(name: str, file: str) -> None:
    on = further(file)
    check(on.model, eagerly(name), on, on.outputs, f"{name} on {file}")


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), sampled_pairs())
@EACH_FURTHER_MODEL
def test_sampled_pairs_on_a_further_model(file: str, first: str, second: str) -> None:
    check_pairs(first, [second], further(file))
