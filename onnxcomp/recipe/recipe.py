"""Recipes: a name, a goal and steps, from a preset, a TOML file or Python; and what can be said of all steps."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from onnxcomp.contract import Pass, Structure
from onnxcomp.errors import LacksData, RecipeError, UnknownRecipe
from onnxcomp.nearest import meant
from onnxcomp.recipe.choose import Choose
from onnxcomp.recipe.reading import read_step, refuse_unknown
from onnxcomp.recipe.sequential import Sequential
from onnxcomp.recipe.step import Apply, Step, needs_data
from onnxcomp.registry import get_pass, storing_pass

RECIPE_KEYS = frozenset({"description", "goal", "step"})
GOALS = ("bytes", "packed", "latency")


@dataclass(frozen=True)
class Recipe:
    """Steps in order. ``Recipe.load`` takes a preset's name or a TOML file, ``Recipe.of`` passes and steps.

    is_single: one pass was asked for by its name; the other steps prepare it.
    """

    name: str
    steps: tuple[Step, ...]
    description: str = ""
    goal: str = "bytes"
    is_single: bool = False

    @classmethod
    def of(cls, *steps: Pass | Step, name: str = "custom") -> Recipe:
        """A recipe of steps, passes among them."""
        recipe = cls(name, tuple(each if isinstance(each, Step) else Apply(each) for each in steps))
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
        refuse_unknown(name, content, RECIPE_KEYS)
        entries = content.get("step", [])
        if not isinstance(entries, list) or not entries:
            raise RecipeError(f"{name}: a recipe needs at least one [[step]].")
        steps = tuple(read_step(f"{name}: step {number}", entry) for number, entry in enumerate(entries, 1))
        goal = content.get("goal", "bytes")
        if goal not in GOALS:
            raise RecipeError(f"{name}: goal must be one of {', '.join(GOALS)}, got {goal!r}.")
        recipe = cls(name, steps, str(content.get("description", "")), goal)
        recipe.check_order()
        return recipe

    @property
    def _whole(self) -> Sequential | None:
        """All steps as one; None where there are none."""
        return Sequential(self.steps) if self.steps else None

    def unrolled(self) -> Iterator[Step]:
        """What is judged one after the other."""
        return iter(()) if self._whole is None else self._whole.unrolled()

    @property
    def passes(self) -> tuple[Pass, ...]:
        """All passes that it may apply."""
        return () if self._whole is None else self._whole.passes

    def check_order(self) -> None:
        """Refuse an order in which a later pass destroys what an earlier one made, naming the better one."""
        for first, second in () if self._whole is None else self._whole.orders():
            lost = first.makes & second.destroys
            if lost:
                raise RecipeError(f"{self.name}: {_order_advice(first, second, lost)}")

    def needy(self) -> Iterator[Step]:
        """The steps, or parts of such, that cannot do without calibration data."""
        return iter(()) if self._whole is None else self._whole.needy()

    def check_needs(self, *, calibration: bool) -> None:
        """Refuse a recipe one of whose passes needs data that is not there."""
        for step in () if calibration else self.needy():
            where = "" if step.name == self.name else f"{self.name}: "
            option = "--calib-data, in Python calibration="
            raise LacksData(f"{where}{step.name} needs calibration data. Give it with {option}.")

    def waits_for_data(self) -> tuple[str, ...]:
        """The passes that ``without_calibration`` does not even try, repairs after a choice aside."""
        found = (each.pass_name() for step in self.steps for each in step.rewrites if needs_data([each]))
        return tuple(dict.fromkeys(found))

    def without_calibration(self) -> Recipe:
        """The recipe without the steps that wait for calibration data, and without trying what needs them."""
        return self._of(each.without_data() for each in self.steps)

    def exact_part(self) -> Recipe:
        """The recipe with the steps alone that leave the outputs as they are."""
        return self._of(each.exact_part() for each in self.steps)

    def _of(self, steps: Iterator[Step | None]) -> Recipe:
        return dataclasses.replace(self, steps=tuple(each for each in steps if each is not None))


def preset_names() -> list[str]:
    """The recipes that ship with the package."""
    folder = resources.files("onnxcomp") / "presets"
    return sorted(each.name.removesuffix(".toml") for each in folder.iterdir() if each.name.endswith(".toml"))


def preset_text(name: str) -> str | None:
    """The TOML of a preset; None for what is none."""
    if name not in preset_names():
        return None
    return (resources.files("onnxcomp") / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def _read(source: str | os.PathLike[str]) -> tuple[str, str]:
    name = os.fspath(source)
    known = preset_text(name)
    if known is not None:
        return known, name
    path = Path(name)
    if not path.is_file():
        known = f"Presets: {', '.join(preset_names())}; or name a TOML file."
        raise UnknownRecipe(f"{name}: no such recipe.{meant(name, preset_names())} {known}")
    try:
        return path.read_text(encoding="utf-8"), path.name
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name}: the recipe cannot be read: {error}.") from error


def _order_advice(earlier: Pass, later: Pass, lost: frozenset[Structure]) -> str:
    what = " and ".join(sorted(lost))
    words = f"{later.pass_name()} after {earlier.pass_name()} would destroy its {what}."
    if later.makes & earlier.destroys:
        return f"{words} The two cannot be combined."
    return f"{words} Put {later.pass_name()} before {earlier.pass_name()}."


def single(rewrite: Pass, *, auto: bool = False, exclude: Sequence[str] = (), store: bool = False) -> Recipe:
    """The recipe of one pass, as ``onnxcomp run`` makes it: what prepares it comes first. store: what it makes is
    stored in the fewest bytes after it."""
    leave = tuple(exclude)
    prepared = [Apply(get_pass(name)(), exclude=leave) for name in rewrite.prepared_by]
    step = Choose((rewrite,), exclude=leave) if auto else Apply(rewrite, exclude=leave)
    stored = [Apply(get_pass(storing_pass())(), exclude=leave)] if store and not rewrite.stores_encodings else []
    return Recipe(rewrite.pass_name(), (*prepared, step, *stored), is_single=True)
