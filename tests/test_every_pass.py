"""The shipped suite over every pass in the registry, and what it leaves to other tools: hypothesis, and pairs.

`make test` tries each pass on a part of the models, in turn; on all of them `make test-thorough` does every check of
every pass, and `make test-slow` some of each.
"""

import os
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcomp.contract import Pass
from onnxcomp.errors import RecipeError
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass, pass_names
from onnxcomp.testing import Sample, checks_of, drawn
from onnxcomp.testing.applying import apply, eager, variants
from onnxcomp.testing.comparing import run
from onnxcomp.testing.promises import assert_keeps_promises
from onnxcomp.testing.trial import DRAWN
from tests.graphs import feeds_for, models
from tests.graphs.running import ORT
from tests.passes.exactly import model
from tests.passes.test_raise_float16 import TWO_CONVS

EACH = pytest.mark.parametrize("name", pass_names())
ANY_MODEL = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
Check = Callable[[], None]
THOROUGH = "ONNXCOMP_THOROUGH" in os.environ  # `make test-thorough`
ON_ALL = frozenset({"result", "encodings", "acts"})  # checks that meet all models in any case
ONE_IN = 8  # of the checks on all models that `make test-slow` does, with each check for some passes


def own_samples(name: str) -> list[Sample]:
    """Models for passes whose sites no drawn model has."""
    return [Sample.of(model(TWO_CONVS), name="two convolutions in float16")] if name == "raise-float16" else []


def every_check(*, thorough: bool) -> list[object]:
    """The checks of each pass, a pass after another: what it does to the models is kept for all of them."""
    return [
        pytest.param(check, id=f"{name}-{title}")
        for place, name in enumerate(pass_names())
        for at, (title, check) in enumerate(checks_of(get_pass(name), samples=own_samples(name), thorough=thorough))
        if not thorough or (title not in ON_ALL and (THOROUGH or (place + at) % ONE_IN == 0))
    ]


@pytest.mark.parametrize("check", every_check(thorough=False))
def test_pass_is_as_it_should_be(check: Check) -> None:
    check()


@pytest.mark.slow
@pytest.mark.parametrize("check", every_check(thorough=True))
def test_pass_is_as_it_should_be_on_every_model(check: Check) -> None:
    check()


def test_drawn_models_run() -> None:
    """Older releases lose a constant of some models while they optimize them."""
    assert len(drawn()) == DRAWN if ORT >= (1, 31) else len(drawn()) > 0.9 * DRAWN


def assert_valid_on(data: st.DataObject, name: str) -> None:
    model = data.draw(models())
    rewrite = data.draw(st.sampled_from(list(variants(get_pass(name)))))
    feeds = feeds_for(model, 7)
    assert_keeps_promises(apply(model, rewrite, feeds), feeds, run(model, feeds), where=str(rewrite))


@EACH
@settings(ANY_MODEL, max_examples=10)
@given(data=st.data())
def test_result_is_valid_on_any_model(name: str, data: st.DataObject) -> None:
    assert_valid_on(data, name)


@pytest.mark.slow
@EACH
@settings(ANY_MODEL, max_examples=60 if THOROUGH else 40)
@given(data=st.data())
def test_result_is_valid_on_many_models(name: str, data: st.DataObject) -> None:
    assert_valid_on(data, name)


def pairs() -> list[tuple[str, str]]:
    """Ordered pairs of passes, those that a recipe refuses among them; the same sample every time."""
    names = pass_names()
    every = [(first, second) for first in names for second in names]
    random = np.random.default_rng(0)
    return [every[i] for i in sorted(random.permutation(len(every))[:60])]


def assert_composes(first: str, second: str) -> None:
    """The second sees what the first left: factors, masks, packed weights. Or the recipe is refused, saying why."""
    before, after = (kind(**eager(kind)) for kind in map(get_pass, (first, second)))
    try:
        Recipe.of(before, after)
    except RecipeError as error:
        assert first in str(error) and second in str(error)
        return
    for sample in drawn()[::7]:
        one = apply(sample.proto, before, sample.feeds)
        middle = onnx.load_from_string(one.content)
        expected = run(middle, sample.feeds)
        done = apply(middle, after, sample.feeds)
        assert_keeps_promises(done, sample.feeds, expected, where=f"{sample.name} after {first}, {second}")


@pytest.mark.parametrize(("first", "second"), pairs()[::2])
def test_pairs_of_passes_compose(first: str, second: str) -> None:
    assert_composes(first, second)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), pairs()[1::2])
def test_further_pairs_of_passes_compose(first: str, second: str) -> None:
    assert_composes(first, second)


def test_registry_is_not_empty() -> None:
    assert pass_names()
    assert all(issubclass(get_pass(name), Pass) for name in pass_names())
