"""Recipes: everything wrong is said before any work starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from onnxcomp.contract import Context, Effect, Exact, Needs, Outcome, Pass, Structure, parameter
from onnxcomp.errors import RecipeError
from onnxcomp.recipe import Apply, Choose, Race, Recipe, Repeat, Sequential, Step, preset_names
from onnxcomp.registry import get_pass


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


ZEROS, SMOOTH = Apply(MakeZeros()), Apply(SmoothValues())


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(text)
    return path


def names(step: Step) -> list[str]:
    return [each.pass_name() for each in step.rewrites]


def test_every_preset_loads() -> None:
    assert {"default", "small", "fast", "lossless", "packed", "deep-compression", "tiny"} <= set(preset_names())
    for name in preset_names():
        assert Recipe.load(name).steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[step]", "not valid TOML"),
        ("", "needs at least one"),
        ("[[step]]\nbits = 3", "the key pass, choose, try, sequence or repeat"),
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
    with pytest.raises(RecipeError, match="Presets: deep-compression, default, fast, lossless, packed, small, tiny"):
        Recipe.load("smal")


def test_auto_is_kept_apart_from_the_fields(tmp_path: Path) -> None:
    recipe = Recipe.load(write(tmp_path, '[[step]]\npass = "cluster-weights"\nbits = "auto"'))
    [step] = recipe.steps
    assert isinstance(step, Choose) and step.fields()["bits"] == "auto"


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
    recipe = Recipe.of(Apply(SmoothValues(), when="calibration"), MakeZeros())
    recipe.check_needs(calibration=False)
    assert [each.name for each in recipe.without_calibration().steps] == ["make-zeros"]


TRY = """
[[step]]
try = [{pass = "cluster-weights", bits = 4}, [{pass = "fuse-pad"}, {pass = "quantize-static"}]]
otherwise = [{pass = "quantize-static", calibrator = "entropy"}]
"""


def test_a_step_may_try_passes_on_the_whole_model(tmp_path: Path) -> None:
    [step] = Recipe.load(write(tmp_path, TRY)).steps
    assert isinstance(step, Race)
    assert [names(each) for each in step.candidates] == [["cluster-weights"], ["fuse-pad", "quantize-static"]]
    assert step.fallbacks[0].fields()["calibrator"] == "entropy" and step.candidates[0].fields()["bits"] == 4
    assert step.name == "fastest of 2" and not step.is_exact


def test_what_needs_calibration_is_not_tried_without_it(tmp_path: Path) -> None:
    recipe = Recipe.load(write(tmp_path, TRY))
    recipe.check_needs(calibration=False)
    [step] = recipe.without_calibration().steps
    assert isinstance(step, Race) and names(step) == ["cluster-weights"] and not step.fallbacks
    assert recipe.waits_for_data() == ("quantize-static",)
    needy = Recipe.of(Race.of([SmoothValues()]))
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
        Recipe.of(Race.of([MakeZeros(), SmoothValues()]))


SEQUENCE = """
[[step]]
sequence = [{pass = "prune-weights", sparsity = 0.5, exclude = ["w"]}, {pass = "match-outputs", when = "calibration"}]
verify = "end"
exclude = ["head*"]
"""
ROUNDS = """
[[step]]
repeat = [{pass = "prune-weights"}, {pass = "match-outputs", when = "calibration"}]
schedule = {sparsity = [0.3, 0.5, 0.7]}
"""


def values(step: Step, field: str) -> list[object]:
    return [getattr(each, field) for each in step.rewrites if hasattr(each, field)]


def test_a_sequence_judged_at_its_end_is_one_step(tmp_path: Path) -> None:
    [step] = Recipe.load(write(tmp_path, SEQUENCE)).unrolled()
    assert isinstance(step, Sequential) and step.name == "prune-weights + match-outputs"
    assert [each.exclude for each in step.in_turn()] == [("head*", "w"), ("head*",)]


def test_rounds_take_their_values_from_the_schedule(tmp_path: Path) -> None:
    [step] = Recipe.load(write(tmp_path, ROUNDS)).steps
    assert isinstance(step, Repeat) and [values(each, "sparsity") for each in step.rounds] == [[0.3], [0.5], [0.7]]
    named = Repeat(step.steps, {"prune-weights.sparsity": [0.1, 0.2], "match-outputs.rounds": [1, 2]})
    assert [values(each, "rounds") for each in named.rounds] == [[1], [2]]
    assert [values(each, "sparsity") for each in Repeat(step.steps, count=2).rounds] == [[0.5], [0.5]]


def test_without_data_a_tree_loses_what_waits_for_them(tmp_path: Path) -> None:
    left = []
    for text in (SEQUENCE, ROUNDS):
        recipe = Recipe.load(write(tmp_path, text))
        recipe.check_needs(calibration=False)
        left += recipe.without_calibration().unrolled()
        with pytest.raises(RecipeError, match="match-outputs needs calibration data"):
            Recipe.load(write(tmp_path, text.replace(', when = "calibration"', ""))).check_needs(calibration=False)
    first, second = left
    assert isinstance(first, Apply) and first.exclude == ("head*", "w")
    assert names(second) == ["prune-weights"] * 3 and values(second, "sparsity") == [0.3, 0.5, 0.7]


DOCUMENTED = [
    (path.name, text)
    for path in sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    for text in re.findall(r"```toml\n(.*?)```", path.read_text(), flags=re.DOTALL)
    if "[[step]]" in text
]


@pytest.mark.parametrize(("page", "text"), DOCUMENTED, ids=[f"{page}-{at}" for at, (page, _) in enumerate(DOCUMENTED)])
def test_recipes_of_the_docs_are_recipes(page: str, text: str, tmp_path: Path) -> None:
    assert Recipe.load(write(tmp_path, text)).steps, page


def test_a_key_of_the_schedule_may_be_quoted(tmp_path: Path) -> None:
    text = '[[step]]\nrepeat = [{pass = "prune-weights"}]\nschedule = {"prune-weights.sparsity" = [0.3, 0.5]}'
    [step] = Recipe.load(write(tmp_path, text)).steps
    assert isinstance(step, Repeat)
    assert [each.rewrites[0].sparsity for each in step.rounds] == [0.3, 0.5]


def test_rounds_without_the_pass_that_the_schedule_is_of_keep_their_number() -> None:
    waiting = Apply(SmoothValues(), when="calibration")
    made = Repeat((Apply(MakeZeros()), Sequential((Apply(MakeZeros()), waiting), "end")), {"share": [0.1, 0.2]})
    left = made.without_data()
    assert isinstance(left, Repeat) and [values(each, "share") for each in left.rounds] == [[0.1, 0.1], [0.2, 0.2]]
    assert Repeat((waiting,), count=3).without_data() is None


def test_steps_of_a_sequence_that_are_judged_one_by_one_are_steps_of_the_recipe() -> None:
    inner = Sequential((Apply(MakeZeros(), exclude=("b",)), Race.of([MakeZeros()])), exclude=("a",))
    first, second = Recipe.of(Sequential((inner,), exclude=("c",))).unrolled()
    assert first.exclude == ("c", "a", "b") and second.exclude == ("c", "a")


def test_a_sequence_of_exact_passes_has_nothing_to_judge() -> None:
    tidy = Apply(get_pass("drop-unused")()), Apply(get_pass("drop-defaults")())
    recipe = Recipe.of(Sequential(tidy, "end"), Repeat(tidy, count=2))
    assert all(isinstance(each, Apply) for each in recipe.unrolled()) and len(list(recipe.unrolled())) == 6
    mixed = Recipe.of(Sequential((*tidy, ZEROS)), Sequential((tidy[0], ZEROS), "end"))
    assert [each.name for each in mixed.exact_part().unrolled()] == ["drop-unused", "drop-defaults"]


def test_an_order_that_destroys_is_refused_wherever_it_stands() -> None:
    for tree in (
        (Sequential((ZEROS, SMOOTH), "end"),),
        (Sequential((Sequential((ZEROS,)), ZEROS)), Race.of([SmoothValues()])),
        (Repeat((ZEROS, SMOOTH), count=2),),
        (Repeat((ZEROS,), count=2), Choose((get_pass("quantize-weights")(),), (SmoothValues(),))),
    ):
        with pytest.raises(RecipeError, match="smooth-values after make-zeros would destroy its zeros"):
            Recipe.of(*tree)


def test_what_a_round_makes_again_may_be_destroyed_by_it() -> None:
    """Smoothing before the zeros of the next round are made; without these they would be gone for good."""
    Recipe.of(Repeat((SMOOTH, ZEROS), count=2))
    with pytest.raises(RecipeError, match="would destroy its zeros"):
        Recipe.of(Sequential((SMOOTH, ZEROS, SMOOTH, ZEROS), "end"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("sequence = []", "step 1: sequence must be a list of steps"),
        ('sequence = "fuse-pad"', "step 1: sequence must be a list of steps"),
        ('sequence = [{pass = "fuse-pad"}]\nverify = "never"', "step 1: verify must be one of each, end, got 'never'"),
        ('sequence = [{pass = "fuse-pad"}]\nrounds = 2', "step 1: unknown key rounds"),
        ('sequence = [{pass = "fuse-pad", verify = "end"}]', r"sequence 1 \(fuse-pad\): unknown key verify"),
        ('sequence = [{sequence = [{pass = "no-such"}]}]', "step 1: sequence 1: sequence 1: no-such: no such pass"),
        (
            'sequence = [{pass = "fuse-pad"}, {choose = ["cluster-weights"]}]\nverify = "end"',
            "step 1: cluster-weights judges for itself, so it cannot be judged together",
        ),
        (
            'sequence = [{sequence = [{pass = "fuse-pad"}], verify = "each"}]\nverify = "end"',
            'step 1: fuse-pad: verify must be "end" inside what is judged together',
        ),
        ('try = [{try = [{pass = "fuse-pad"}]}]', "step 1: fastest of 1 judges for itself"),
        ('try = [{pass = "cluster-weights", bits = "auto"}]', "step 1: cluster-weights judges for itself"),
        ('repeat = [{pass = "prune-weights"}]', "step 1: repeat needs rounds, or a schedule"),
        ('repeat = [{pass = "prune-weights"}]\nrounds = 0', "step 1: repeat needs at least one round"),
        ('repeat = [{pass = "prune-weights"}]\nrounds = true', "step 1: rounds must be an integer"),
        (
            'repeat = [{pass = "prune-weights"}]\nrounds = 2\nschedule = {sparsity = [0.5]}',
            "a list of values, one for every round, of which there are 2",
        ),
        (
            'repeat = [{pass = "prune-weights"}]\nschedule = {sparsity = [0.5], scope = ["model", "weight"]}',
            "a list of values, one for every round",
        ),
        ('repeat = [{pass = "prune-weights"}]\nschedule = {sparsity = 0.5}', "schedule must be a table of fields"),
        ('repeat = [{pass = "prune-weights"}]\nschedule = [0.5]', "schedule must be a table of fields"),
        (
            'repeat = [{pass = "prune-weights"}]\nschedule = {sparsity = [0.5, 1.5]}',
            "step 1: schedule: prune-weights: sparsity must be a number from 0.0 to 1.0, got 1.5",
        ),
        (
            'repeat = [{pass = "prune-weights"}]\nschedule = {bits = [4]}',
            "step 1: schedule: bits is a field of none of prune-weights",
        ),
        (
            'repeat = [{pass = "quantize-weights"}, {pass = "round-weights"}]\nschedule = {bits = [4]}',
            "bits is a field of several passes. Write quantize-weights.bits or round-weights.bits",
        ),
        ('pass = "fuse-pad"\nthen = ["match-outputs"]', r"step 1 \(fuse-pad\): unknown key then"),
    ],
)
def test_says_where_a_tree_is_wrong(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.load(write(tmp_path, f"[[step]]\n{entry}"))


def test_a_tree_too_deep_is_refused(tmp_path: Path) -> None:
    depth = 3000
    text = "[[step]]\nsequence = " + "[{sequence = " * depth + '[{pass = "fuse-pad"}]' + "}]" * depth
    with pytest.raises(RecipeError):
        Recipe.load(write(tmp_path, text))
