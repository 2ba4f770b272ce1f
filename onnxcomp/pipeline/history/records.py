"""What the receipt says of one application of a pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from onnxcomp.contract import Choice, Context, Outcome, Pass, own_choice, parameters
from onnxcomp.errors import RecipeError
from onnxcomp.receipt import Application, Entry


def application(rewrite: Pass, context: Context, outcome: Outcome, choice: Choice | None = None) -> Application:
    """How to apply the pass again as it was applied in this context, at ``choice``, or at what it came to before the
    deadline."""
    if outcome.is_cut_short:
        done = own_choice(each.name for each in outcome.changed)
        choice = done if choice is None else {name: choice[name] for name in done if name in choice}
    if outcome.decided:
        known = {name: {} for name in outcome.decided} if choice is None else choice
        choice = {name: {**fields, **outcome.decided.get(name, {})} for name, fields in known.items()}
    return Application(
        rewrite=rewrite.pass_name(),
        parameters=parameters_of(rewrite) | outcome.settled,
        choice=None if choice is None else {name: dict(fields) for name, fields in choice.items()},
        exclude=list(context.exclude),
        on_data=rewrite.draws_on_data(calibration=context.calibration is not None),
    )


def pass_again(kind: type[Pass], applied: Application) -> Pass:
    """The pass of an application. Raises ParameterError or RecipeError where its parameters are none of ``kind``."""
    unknown = sorted(applied.parameters.keys() - {each.name for each in parameters(kind)})
    if unknown:
        raise RecipeError(f"{applied.rewrite}: the receipt has {unknown[0]}, which this version's pass does not.")
    return kind(**applied.parameters)


def parameters_of(rewrite: Pass) -> dict[str, Any]:
    """The fields of a pass and their values."""
    return {each.name: getattr(rewrite, each.name) for each in parameters(type(rewrite))}


def title(passes: Iterable[Pass]) -> str:
    """Passes in turn in a few words: their names and the parameters that are not the default."""
    return " + ".join(_titled(each) for each in passes)


def _titled(rewrite: Pass) -> str:
    stated = {each.name: getattr(rewrite, each.name) for each in parameters(type(rewrite))}
    defaults = {each.name: each.default for each in parameters(type(rewrite))}
    chosen = [f"{name}={value}" for name, value in stated.items() if value != defaults[name]]
    return " ".join([rewrite.pass_name(), *chosen])


def entries(outcome: Outcome) -> list[Entry]:
    """The changes of an outcome."""
    return [Entry(each.name, each.what, dict(each.details)) for each in outcome.changed]


def skipped(outcome: Outcome) -> list[Entry]:
    """What an outcome left alone, and why."""
    return [Entry(each.name, each.reason) for each in outcome.skipped]
