"""Recipes: passes in order with their parameters, as TOML or from Python.

    description = "what it is for"
    goal = "bytes"              # or "latency": then a step that claims speed and gives none is taken back
    [[step]]
    pass = "cluster-weights"
    bits = "auto"               # the strongest that the budget bears, weight by weight
    when = "calibration"        # leave the step out when there is no calibration data
    exclude = ["*embedding*"]
    [[step]]
    choose = ["quantize-weights", "cluster-weights"]    # for each weight the pass and strength that serve best
    then = ["match-outputs"]    # applied to what was chosen before it is judged, so that it is part of the choice
    [[step]]
    try = [                     # for the whole model: each is measured, the fastest within the budget kept
        {pass = "quantize-static"},
        [{pass = "fuse-activations"}, {pass = "cast-float16"}],
    ]
    otherwise = [[{pass = "equalize-ranges"}, {pass = "quantize-static"}]]  # where the fastest breaks the budget

Everything is checked before any work starts: names, keys, ranges, needs, and an order that would undo itself.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from onnxcomp.contract import Needs, Pass, parameters
from onnxcomp.errors import ParameterError, PassError, RecipeError
from onnxcomp.registry import get_pass

AUTO = "auto"
STEP_KEYS = frozenset({"pass", "choose", "then", "try", "otherwise", "when", "exclude"})
RECIPE_KEYS = frozenset({"description", "goal", "step"})
GOALS = ("bytes", "latency")


@dataclass(frozen=True)
class Step:
    """One pass of a recipe, or a choice among several.

    auto: the pass's strength field was given as "auto": it is chosen for each weight.
    alternatives: more passes to choose from, each at all its strengths.
    then: passes applied to every choice before it is judged.
    trials: what to try on the whole model, each one pass or several in turn; ``rewrite`` is the first of all.
    spares: what to try beside these where one that is faster than the rest breaks the budget.
    when: "always", or "calibration": only where calibration data is given.
    """

    rewrite: Pass
    auto: bool = False
    when: str = "always"
    exclude: tuple[str, ...] = ()
    alternatives: tuple[Pass, ...] = ()
    trials: tuple[tuple[Pass, ...], ...] = ()
    spares: tuple[tuple[Pass, ...], ...] = ()
    then: tuple[Pass, ...] = ()

    @classmethod
    def of_trials(
        cls,
        *trials: Sequence[Pass],
        spares: Iterable[Sequence[Pass]] = (),
        when: str = "always",
        exclude: Sequence[str] = (),
    ) -> Step:
        """The step that tries each of these on the whole model."""
        tried, kept = (tuple(tuple(each) for each in which) for which in (trials, spares))
        return cls(tried[0][0], when=when, exclude=tuple(exclude), trials=tried, spares=kept)

    @property
    def rewrites(self) -> tuple[Pass, ...]:
        """The pass and its alternatives, or all passes that are tried."""
        if self.trials:
            return tuple(itertools.chain.from_iterable((*self.trials, *self.spares)))
        return (self.rewrite, *self.alternatives)

    @property
    def exact(self) -> bool:
        """Whether it is one pass that leaves the outputs as they are: nothing has to be chosen or weighed."""
        return not self.trials and self.rewrite.effect.exact

    @property
    def name(self) -> str:
        """The pass's name, or the names to choose from, or how many things are tried."""
        if self.trials:
            return f"fastest of {len(self.trials)}"
        return " | ".join(dict.fromkeys(each.pass_name() for each in self.rewrites))

    @property
    def candidates(self) -> tuple[Pass, ...]:
        """Every pass and strength that "auto" chooses from."""
        return tuple(dataclasses.replace(each, **fields) for each in self.rewrites for fields in each.choices())


@dataclass(frozen=True)
class Recipe:
    """Passes in order. ``Recipe.load`` takes a preset's name or a TOML file, ``Recipe.of`` passes.

    is_single: one pass was asked for by its name; the other steps prepare it.
    """

    name: str
    steps: tuple[Step, ...]
    description: str = ""
    goal: str = "bytes"
    is_single: bool = False

    @classmethod
    def of(cls, *passes: Pass, name: str = "custom") -> Recipe:
        """A recipe of passes with fixed parameters."""
        recipe = cls(name, tuple(Step(each) for each in passes))
        recipe.check_order()
        return recipe

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> Recipe:
        """Read a preset by name or a TOML file; RecipeError says what is wrong and where."""
        text, name = _read(source)
        try:
            content = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise RecipeError(f"{name}: not valid TOML: {error}.") from error
        return cls.from_dict(content, name=name)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, name: str) -> Recipe:
        """The recipe that a TOML document's content describes."""
        _refuse_unknown(name, content, RECIPE_KEYS)
        entries = content.get("step", [])
        if not isinstance(entries, list) or not entries:
            raise RecipeError(f"{name}: a recipe needs at least one [[step]].")
        steps = tuple(_step(f"{name}: step {number}", entry) for number, entry in enumerate(entries, 1))
        goal = content.get("goal", "bytes")
        if goal not in GOALS:
            raise RecipeError(f"{name}: goal must be one of {', '.join(GOALS)}, got {goal!r}.")
        recipe = cls(name, steps, str(content.get("description", "")), goal)
        recipe.check_order()
        return recipe

    def check_order(self) -> None:
        """Refuse an order in which a later pass destroys what an earlier one made, naming the better one."""
        for first, second in self._in_order():
            lost = first.makes - second.preserves
            if lost:
                raise RecipeError(f"{self.name}: {_order_advice(first, second, lost)}")

    def _in_order(self) -> Iterator[tuple[Pass, Pass]]:
        """Every two passes of which the second may come after the first."""
        for earlier, later in itertools.combinations(self.steps, 2):
            yield from itertools.product((*earlier.rewrites, *earlier.then), (*later.rewrites, *later.then))
        for step in self.steps:
            yield from itertools.product(step.rewrites, step.then)
            yield from itertools.combinations(step.then, 2)
            for trial in (*step.trials, *step.spares):
                yield from itertools.combinations(trial, 2)

    def check_needs(self, *, calibration: bool) -> None:
        """Refuse a recipe one of whose passes needs data that is not there."""
        for step in self.steps:
            if not calibration and step.when == "always" and not step.trials and _is_needy(step.rewrites):
                raise RecipeError(f"{self.name}: {step.name} needs calibration data. Give it with --calib-data.")

    def waits_for_data(self) -> tuple[str, ...]:
        """The passes that ``without_calibration`` does not even try, repairs after a step aside."""
        found = (each.pass_name() for step in self.steps for each in step.rewrites if _is_needy([each]))
        return tuple(dict.fromkeys(found))

    def without_calibration(self) -> Recipe:
        """The recipe without the steps that wait for calibration data, and without trying what needs them."""
        steps = []
        for step in self.steps:
            trials, spares = (
                tuple(each for each in some if not _is_needy(each)) for some in (step.trials, step.spares)
            )
            then = tuple(each for each in step.then if not _is_needy([each]))
            if step.when == "calibration" or (step.trials and not trials):
                continue
            first = trials[0][0] if trials else step.rewrite
            steps.append(dataclasses.replace(step, trials=trials, spares=spares, rewrite=first, then=then))
        return dataclasses.replace(self, steps=tuple(steps))


def _is_needy(rewrites: Iterable[Pass]) -> bool:
    return any(each.needed() is Needs.CALIBRATION for each in rewrites)


def preset_names() -> list[str]:
    """The recipes that ship with the package."""
    folder = resources.files("onnxcomp") / "presets"
    return sorted(each.name.removesuffix(".toml") for each in folder.iterdir() if each.name.endswith(".toml"))


def _read(source: str | os.PathLike[str]) -> tuple[str, str]:
    name = os.fspath(source)
    if name in preset_names():
        return (resources.files("onnxcomp") / "presets" / f"{name}.toml").read_text(), name
    path = Path(name)
    if not path.is_file():
        raise RecipeError(f"{name}: no such recipe. Presets: {', '.join(preset_names())}; or name a TOML file.")
    try:
        return path.read_text(encoding="utf-8"), path.name
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name}: the recipe cannot be read: {error}.") from error


def _step(where: str, entry: Any) -> Step:
    if isinstance(entry, dict) and "choose" in entry:
        return _choice(where, entry)
    if isinstance(entry, dict) and "try" in entry:
        return _trial_step(where, entry)
    kind, values = _stated(where, entry, STEP_KEYS)
    strength = kind.strength()
    auto = strength is not None and values.get(strength.name) == AUTO and not strength.accepts(AUTO)
    if auto and strength is not None:
        del values[strength.name]
    try:
        return Step(kind(**values), auto, _when(where, entry), _patterns(where, entry))
    except ParameterError as error:
        raise RecipeError(f"{where}: {error}") from error


def _stated(where: str, entry: Any, others: frozenset[str]) -> tuple[type[Pass], dict[str, Any]]:
    """The pass that a table names and the fields that it sets; ``others`` are its further keys."""
    if not isinstance(entry, dict) or not isinstance(entry.get("pass"), str):
        raise RecipeError(f"{where}: must be a table with the key pass, choose or try.")
    kind = _pass(where, entry["pass"])
    values = {key.replace("-", "_"): value for key, value in entry.items() if key not in others}
    _refuse_unknown(f"{where} ({kind.pass_name()})", values, {each.name for each in parameters(kind)})
    return kind, values


def _trial_step(where: str, entry: Mapping[str, Any]) -> Step:
    """A step that tries several passes, or several in turn, on the whole model."""
    _refuse_unknown(where, entry, STEP_KEYS - {"pass", "choose", "then"})
    trials, spares = (_trials(where, entry, key) for key in ("try", "otherwise"))
    return Step.of_trials(*trials, spares=spares, when=_when(where, entry), exclude=_patterns(where, entry))


def _trials(where: str, entry: Mapping[str, Any], key: str) -> list[list[Pass]]:
    entries = entry.get(key, [])
    if not isinstance(entries, list) or not all(entries) or (key in entry and not entries):
        raise RecipeError(f"{where}: {key} must be a list of tables with the key pass, or of lists of them.")
    return [_trial(f"{where}: {key} {number}", each) for number, each in enumerate(entries, 1)]


def _trial(where: str, entry: Any) -> list[Pass]:
    passes = []
    for each in entry if isinstance(entry, list) else [entry]:
        kind, values = _stated(where, each, frozenset({"pass"}))
        try:
            passes.append(kind(**values))
        except ParameterError as error:
            raise RecipeError(f"{where}: {error}") from error
    return passes


def _choice(where: str, entry: Mapping[str, Any]) -> Step:
    """A step that names several passes, each to be taken at its best strength."""
    names = entry["choose"]
    _refuse_unknown(where, entry, STEP_KEYS - {"pass", "try", "otherwise"})
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise RecipeError(f"{where}: choose must be a list of passes, got {names!r}.")
    kinds = [_pass(where, name) for name in names]
    for kind in kinds:
        if not kind.choices():
            raise RecipeError(f"{where}: {kind.pass_name()} has no strength to choose.")
    first, *others = [kind() for kind in kinds]
    then = tuple(itertools.chain.from_iterable(_trial(f"{where}: then", each) for each in _named(where, entry)))
    return Step(first, True, _when(where, entry), _patterns(where, entry), tuple(others), then=then)


def _named(where: str, entry: Mapping[str, Any]) -> list[Any]:
    """What stands under "then", each a table with the key pass; a pass's name alone is one, too."""
    given = entry.get("then", [])
    if not isinstance(given, list):
        raise RecipeError(f"{where}: then must be a list of passes, got {given!r}.")
    return [{"pass": each} if isinstance(each, str) else each for each in given]


def _pass(where: str, name: str) -> type[Pass]:
    try:
        return get_pass(name)
    except PassError as error:
        raise RecipeError(f"{where}: {error}") from error


def _when(where: str, entry: Mapping[str, Any]) -> str:
    when = entry.get("when", "always")
    if when not in ("always", "calibration"):
        raise RecipeError(f"{where}: when must be one of always, calibration, got {when!r}.")
    return str(when)


def _patterns(where: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    patterns = entry.get("exclude", [])
    if not isinstance(patterns, list) or not all(isinstance(each, str) for each in patterns):
        raise RecipeError(f"{where}: exclude must be a list of patterns, got {patterns!r}.")
    return tuple(patterns)


def _refuse_unknown(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise RecipeError(f"{where}: unknown key {unknown[0]}. Known keys: {', '.join(sorted(known)) or 'none'}.")


def _order_advice(earlier: Pass, later: Pass, lost: frozenset[str]) -> str:
    what = " and ".join(sorted(lost))
    words = f"{later.pass_name()} after {earlier.pass_name()} would destroy its {what}."
    if later.makes - earlier.preserves:
        return f"{words} The two cannot be combined."
    return f"{words} Put {later.pass_name()} before {earlier.pass_name()}."


def single(rewrite: Pass, *, auto: bool = False, exclude: Sequence[str] = ()) -> Recipe:
    """The recipe of one pass, as ``onnxcomp run`` makes it: what prepares it comes first."""
    prepared = [Step(get_pass(name)(), exclude=tuple(exclude)) for name in rewrite.prepared_by]
    return Recipe(rewrite.pass_name(), (*prepared, Step(rewrite, auto, exclude=tuple(exclude))), is_single=True)
