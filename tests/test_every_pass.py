"""One suite over every pass in the registry: what it declares, and that it does so on any model.

`make test` tries each choice of a pass on a part of the models, in turn, and `make test-slow` on all of them. What a
pass does to the samples is kept for its other tests, which come one after another.
"""

import dataclasses
import glob
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from onnxcomp.contract import Effect, Needs, Parameter, Pass, parameters
from onnxcomp.errors import ParameterError, RecipeError
from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.model import Model
from onnxcomp.pipeline.apply import only_values, put_back
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass, pass_names
from tests.applying import (
    Applied,
    apply,
    assert_exact_to_the_bit,
    assert_keeps_promises,
    eager,
    variants,
)
from tests.graphs import draw_models, feeds_for, models
from tests.graphs.running import ORT, run

EACH = pytest.mark.parametrize("name", pass_names(), scope="module")  # a pass after another, for eagerly_applied
ANY_MODEL = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
DRAWN = 132  # twice the number of blocks: each block stands first in two models


@dataclasses.dataclass(frozen=True)
class Sample:
    """A drawn model, inputs for it and what it gives."""

    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


@cache
def samples() -> list[Sample]:
    drawn = []
    for index, model in enumerate(draw_models(DRAWN, seed=2024)):
        feeds = feeds_for(model, index)
        try:
            drawn.append(Sample(model, feeds, run(model, feeds)))
        except (Fail, InvalidArgument):
            if ORT >= (1, 31):  # older ones lose a constant of some models while they optimize them
                raise
    assert len(drawn) > 0.9 * DRAWN
    return drawn


@lru_cache(maxsize=1)
def eagerly_applied(name: str) -> list[Applied]:
    """The pass, as eager as it gets, applied to each sample."""
    kind = get_pass(name)
    return [apply(sample.model, kind(**eager(kind)), sample.feeds) for sample in samples()]


def applications(name: str, every: int = 1) -> list[tuple[Sample, Applied]]:
    """What the eager pass makes of each sample, or each 5th or 7th: that meets every block in time."""
    return list(zip(samples(), eagerly_applied(name), strict=True))[::every]


def applied_anew(name: str, every: int, **context: Any) -> Iterator[Applied]:
    """The eager pass applied once more, or under another context."""
    kind = get_pass(name)
    for sample in samples()[::every]:
        yield apply(sample.model, kind(**eager(kind)), sample.feeds, **context)


# --- what a pass declares ----------------------------------------------------------------------------------


@EACH
def test_docstring_opens_with_one_imperative_sentence(name: str) -> None:
    summary = get_pass(name).summary()
    first = summary.split()[0]
    assert re.fullmatch(r"[A-Z].*\.", summary), summary
    assert ". " not in summary.rstrip("."), "one sentence"
    assert first.endswith("ss") or not first.endswith(("s", "ing", "ed")), f"{first} is not imperative"
    assert len(summary) <= 110


@EACH
def test_effect_is_declared(name: str) -> None:
    kind = get_pass(name)
    assert isinstance(kind.effect, Effect)
    assert kind.effect.shrinks
    assert set(kind.effect.shrinks) <= {"bytes", "latency", "load", "memory"}
    assert isinstance(kind.needs, Needs)
    assert not (kind.effect.rounding and not kind.effect.is_exact), "rounding qualifies exact"


@EACH
def test_source_is_named_where_the_pass_loses_something(name: str) -> None:
    kind = get_pass(name)
    assert kind.effect.is_exact or kind.paper, "a lossy pass names where its method comes from"
    assert not kind.paper or kind.paper.startswith("https://")


@EACH
def test_class_is_a_frozen_keyword_only_dataclass(name: str) -> None:
    kind = get_pass(name)
    rewrite = kind()
    with pytest.raises(TypeError):
        kind(*[None] * (len(parameters(kind)) or 1))
    for each in parameters(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rewrite, each.name, each.default)


@EACH
def test_module_says_what_changes(name: str) -> None:
    module = importlib.import_module(get_pass(name).__module__)
    assert module.__doc__
    assert inspect.getdoc(get_pass(name))


@EACH
def test_fields_have_help_range_and_a_default_within(name: str) -> None:
    for each in parameters(get_pass(name)):
        assert each.help, each.name
        assert each.help == each.help.strip(), each.name
        assert each.accepts(each.default), each.name
        assert all(each.accepts(value) for value in each.strengths or ()), each.name
        if each.type in (int, float):
            assert each.low is not None, f"{each.name} has no lower bound"


def invalid_values(field: Parameter) -> list[Any]:
    """Values outside the declared range or of another type."""
    wrong: list[Any] = [[], {"a": 1}, b"bytes"]
    if not field.optional:
        wrong.append(None)
    if field.choices is not None or field.type is str:
        return [*wrong, 1, *(["no such choice"] if field.choices else [])]
    if field.type is bool:
        return [*wrong, 0, 1, "true"]
    wrong += ["1", True, float("nan"), complex(1, 0)]
    if field.type is int:
        wrong.append((field.default or 1) + 0.5)
    if field.low is not None:
        wrong += [field.low - 1, -float("inf")]
    if field.high is not None:
        wrong += [field.high + 1, float("inf")]
    return wrong


@EACH
def test_invalid_values_are_refused_in_one_shape(name: str) -> None:
    kind = get_pass(name)
    for each in parameters(kind):
        for value in invalid_values(each):
            with pytest.raises(ParameterError) as caught:
                kind(**{each.name: value})
            shape = rf"{name}: {each.name} must be .+, got .*\. See `onnxcomp passes {name}`\."
            assert re.fullmatch(shape, str(caught.value)), str(caught.value)


# --- what it does ------------------------------------------------------------------------------------------


def assert_as_declared(done: Applied, sample: Sample, where: str) -> None:
    """Valid, and as exact as the pass says."""
    assert_keeps_promises(done, sample.feeds, sample.outputs, where=where)
    if done.rewrite.effect.is_exact and not done.rewrite.effect.rounding:
        assert_exact_to_the_bit(done, sample.feeds, where=where)


@EACH
def test_result_is_valid_and_as_exact_as_declared(name: str) -> None:
    for index, (sample, done) in enumerate(applications(name)):
        assert_as_declared(done, sample, f"{done.rewrite} on sample {index}")


@EACH
def test_each_choice_is_valid_and_as_exact_as_declared_on_some_models(name: str) -> None:
    """The choices take turns: with few each meets many models, and with 21 each meets six."""
    chosen = other_choices(name)
    for index, sample in enumerate(samples() if chosen else []):
        rewrite = chosen[index % len(chosen)]
        assert_as_declared(apply(sample.model, rewrite, sample.feeds), sample, f"{rewrite} on sample {index}")


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("part", range(3))
def test_each_choice_is_valid_and_as_exact_as_declared(name: str, part: int) -> None:
    for index, sample in list(enumerate(samples()))[part::3]:
        for rewrite in other_choices(name):
            assert_as_declared(apply(sample.model, rewrite, sample.feeds), sample, f"{rewrite} on sample {index}")


def other_choices(name: str) -> list[Pass]:
    """The pass with its defaults and with every choice and switch, but not as eager as it gets."""
    kind = get_pass(name)
    return [each for each in variants(kind) if each != kind(**eager(kind))]


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
@settings(ANY_MODEL, max_examples=60)
@given(data=st.data())
def test_result_is_valid_on_many_models(name: str, data: st.DataObject) -> None:
    assert_valid_on(data, name)


@EACH
def test_changes_something_in_some_model(name: str) -> None:
    assert any(done.outcome.changed for _, done in applications(name))


@EACH
def test_same_model_gives_the_same_bytes(name: str) -> None:
    for (_, first), second in zip(applications(name, 7), applied_anew(name, 7), strict=True):
        assert first.content == second.content
        assert first.outcome == second.outcome


@EACH
def test_input_is_never_written(name: str) -> None:
    for sample, done in applications(name, 5):
        content = sample.model.SerializeToString(deterministic=True)
        assert done.before.proto.SerializeToString(deterministic=True) == content


@EACH
def test_outcome_names_each_change_and_says_why_it_skipped(name: str) -> None:
    for _, done in applications(name, 5):
        assert all(each.name and each.what for each in done.outcome.changed)
        assert all(each.name and each.reason for each in done.outcome.skipped)
        assert not _names(done) & {each.name for each in done.outcome.skipped}, "both changed and skipped"


@EACH
def test_leaves_everything_alone_when_all_is_excluded(name: str) -> None:
    for done in applied_anew(name, 7, exclude=("*",)):
        assert not done.outcome.changed


@EACH
def test_leaves_alone_what_is_excluded_by_name(name: str) -> None:
    kind = get_pass(name)
    for sample, done in applications(name, 5):
        for excluded in sorted(_names(done))[:2]:
            pattern = glob.escape(excluded)
            again = apply(sample.model, kind(**eager(kind)), sample.feeds, exclude=(pattern,))
            assert excluded not in _names(again)
            assert_keeps_promises(again, sample.feeds, sample.outputs, where=f"{name} without {excluded}")
            if excluded in constants_of(done.before):
                np.testing.assert_array_equal(
                    constants_of(again.after)[excluded], constants_of(again.before)[excluded], excluded
                )


@EACH
def test_touches_only_what_is_included(name: str) -> None:
    kind = get_pass(name)
    for sample, done in applications(name, 5):
        for included in sorted(_names(done))[:2]:
            again = apply(sample.model, kind(**eager(kind)), sample.feeds, include=frozenset({included}))
            assert _names(again) <= {included}
            assert_keeps_promises(again, sample.feeds, sample.outputs, where=f"{name} of {included}")


@EACH
def test_taking_back_a_weight_restores_it(name: str) -> None:
    for sample, done in applications(name, 5):
        names = sorted(_names(done))
        if not names or not only_values(done.before, done.after, names):
            continue
        old, new = constants_of(done.before), constants_of(done.after)
        back = put_back(done.after, done.before, names[:1])
        values = constants_of(back)
        np.testing.assert_array_equal(values.pop(names[0]), old[names[0]])
        for key, array in values.items():
            np.testing.assert_array_equal(array, new[key], key)
        whole = put_back(done.after, done.before, names)
        assert whole.encodings.keys().isdisjoint(names)
        assert all(np.array_equal(array, old[key]) for key, array in constants_of(whole).items())
        assert run(whole.to_bytes(), sample.feeds).keys() == sample.outputs.keys()


@EACH
def test_encodings_make_the_values_to_the_bit(name: str) -> None:
    for _, done in applications(name):
        constants = constants_of(done.after)
        for key, encoding in done.after.encodings.items():
            values = constants[key]
            codes = encoding.encode(values)
            assert codes is not None, f"{key}: the encoding does not make these values"
            decoded = encoding.decode(codes, values.shape)
            assert decoded.dtype == values.dtype
            assert decoded.tobytes() == np.ascontiguousarray(values).tobytes(), key


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
    for index, sample in enumerate(samples()[::7]):
        one = apply(sample.model, before, sample.feeds)
        middle = onnx.load_from_string(one.content)
        expected = run(middle, sample.feeds)
        done = apply(middle, after, sample.feeds)
        assert_keeps_promises(done, sample.feeds, expected, where=f"{first}, {second} on sample {index}")


@pytest.mark.parametrize(("first", "second"), pairs()[::2])
def test_pairs_of_passes_compose(first: str, second: str) -> None:
    assert_composes(first, second)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), pairs()[1::2])
def test_further_pairs_of_passes_compose(first: str, second: str) -> None:
    assert_composes(first, second)


def constants_of(model: Model) -> dict[str, np.ndarray]:
    return {key: np.asarray(constant.values) for key, constant in constants_by_key(open_graph(model)).items()}


def _names(done: Applied) -> set[str]:
    return {each.name for each in done.outcome.changed}


def test_registry_is_not_empty() -> None:
    assert pass_names()
    assert all(issubclass(get_pass(name), Pass) for name in pass_names())
