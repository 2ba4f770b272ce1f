"""Recipes: everything wrong is said before any work starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from onnxcomp.contract import Context, Effect, Exact, Needs, Outcome, Pass, Structure, parameter
from onnxcomp.errors import RecipeError
from onnxcomp.recipe import Recipe, Step, preset_names


@dataclass(frozen=True, kw_only=True)
class MakeZeros(Pass):
    """Make zeros."""

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    makes = frozenset({Structure.ZEROS})

    share: float = parameter(0.5, low=0, high=1, help="share of zeros")

    def apply(self, graph: object, context: Context) -> Outcome:
        return Outcome()


@dataclass(frozen=True, kw_only=True)
class SmoothValues(Pass):
    """Smooth values."""

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    destroys = frozenset({Structure.ZEROS, Structure.FACTORS, Structure.INTEGERS, Structure.COMPACT})
    needs = Needs.CALIBRATION

    def apply(self, graph: object, context: Context) -> Outcome:
        return Outcome()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(text)
    return path


def test_every_preset_loads() -> None:
    assert {"default", "small", "fast", "lossless"} <= set(preset_names())
    for name in preset_names():
        assert Recipe.load(name).steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[step]", "not valid TOML"),
        ("", "needs at least one"),
        ("[[step]]\nbits = 3", "the key pass, choose or try"),
        ('[[step]]\npass = "no-such"', "no such pass. Known passes: .*store-compact"),
        (
            '[[step]]\npass = "cluster-weights"\nbitz = 3',
            r"step 1 \(cluster-weights\): unknown key bitz. Known keys: .*bits",
        ),
        ('[[step]]\npass = "cluster-weights"\nbits = 99', "bits must be a number from 1 to 8, got 99"),
        ('[[step]]\npass = "cluster-weights"\nbits = "many"', "bits must be"),
        ('[[step]]\npass = "store-compact"\nwhen = "raining"', "when must be one of"),
        ('speed = 3\n[[step]]\npass = "store-compact"', "unknown key speed"),
        ('[[step]]\npass = "store-compact"\nexclude = "a"', "exclude must be a list"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.load(write(tmp_path, text))


def test_an_unknown_recipe_lists_the_presets() -> None:
    with pytest.raises(RecipeError, match="Presets: default, fast, lossless, small"):
        Recipe.load("smal")


def test_auto_is_kept_apart_from_the_fields(tmp_path: Path) -> None:
    recipe = Recipe.load(write(tmp_path, '[[step]]\npass = "cluster-weights"\nbits = "auto"'))
    assert recipe.steps[0].auto


def test_an_order_that_destroys_is_refused_with_the_better_one() -> None:
    with pytest.raises(
        RecipeError, match=r"smooth-values after make-zeros would destroy its zeros\. Put smooth-values before"
    ):
        Recipe.of(MakeZeros(), SmoothValues())
    assert len(Recipe.of(SmoothValues(), MakeZeros()).steps) == 2


def test_missing_calibration_is_said_before_any_work() -> None:
    recipe = Recipe.of(SmoothValues())
    with pytest.raises(RecipeError, match="smooth-values needs calibration data"):
        recipe.check_needs(calibration=False)
    recipe.check_needs(calibration=True)


def test_conditional_steps_wait_for_calibration() -> None:
    recipe = Recipe("r", (Step(SmoothValues(), when="calibration"), Step(MakeZeros())))
    recipe.check_needs(calibration=False)
    assert [each.name for each in recipe.without_calibration().steps] == ["make-zeros"]


TRY = """
[[step]]
try = [{pass = "cluster-weights", bits = 4}, [{pass = "fuse-pad"}, {pass = "quantize-static"}]]
otherwise = [{pass = "quantize-static", calibrator = "entropy"}]
"""


def test_a_step_may_try_passes_on_the_whole_model(tmp_path: Path) -> None:
    step = Recipe.load(write(tmp_path, TRY)).steps[0]
    names = [[each.pass_name() for each in trial] for trial in step.trials]
    assert names == [["cluster-weights"], ["fuse-pad", "quantize-static"]]
    assert step.spares[0][0].calibrator == "entropy"  # type: ignore[attr-defined]
    assert step.name == "fastest of 2" and not step.exact
    assert step.trials[0][0].bits == 4  # type: ignore[attr-defined]


def test_what_needs_calibration_is_not_tried_without_it(tmp_path: Path) -> None:
    recipe = Recipe.load(write(tmp_path, TRY))
    recipe.check_needs(calibration=False)
    step = recipe.without_calibration().steps[0]
    assert [len(trial) for trial in step.trials] == [1] and not step.spares and step.rewrite is step.trials[0][0]
    assert recipe.waits_for_data() == ("quantize-static",)
    needy = Recipe("r", (Step.of_trials([SmoothValues()]),))
    assert not needy.without_calibration().steps


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("try = []", "try must be a list"),
        ('try = "fuse-pad"', "try must be a list"),
        ('try = [{pass = "fuse-pad"}]\notherwise = []', "otherwise must be a list"),
        ('choose = ["cluster-weights"]\notherwise = [{pass = "fuse-pad"}]', "unknown key otherwise"),
        ("try = [{bits = 3}]", "try 1: must be a table with the key pass"),
        ('try = [{pass = "fuse-pad"}, {pass = "cluster-weights", bits = 99}]', "try 2: cluster-weights: bits must be"),
        ('try = [{pass = "fuse-pad", when = "always"}]', "unknown key when"),
        ('try = [{pass = "fuse-pad"}]\npass = "fuse-pad"', "unknown key pass"),
    ],
)
def test_says_what_is_wrong_with_what_is_to_be_tried(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.load(write(tmp_path, f"[[step]]\n{entry}"))


def test_an_order_that_destroys_is_refused_inside_what_is_tried() -> None:
    with pytest.raises(RecipeError, match="smooth-values after make-zeros would destroy its zeros"):
        Recipe("r", (Step.of_trials([MakeZeros(), SmoothValues()]),)).check_order()
