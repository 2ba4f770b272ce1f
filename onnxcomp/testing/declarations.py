"""Checks of what a pass declares: docstrings, effect, fields and the values that they refuse."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from typing import Any

from onnxcomp.contract import Effect, Needs, Parameter, Pass, Structure, parameters
from onnxcomp.errors import ParameterError
from onnxcomp.testing.rules import Rule
from onnxcomp.testing.trial import Trial

LONGEST_SUMMARY = 110
SHRINKS = frozenset({"bytes", "latency", "load", "memory"})

DOCSTRING = Rule(
    "docstring",
    "the docstring opens with one imperative sentence, which is the command line's help",
    "write it as an order that ends with a full stop, such as `Round weights to a grid.`",
)
MODULE = Rule(
    "module docstring",
    "the module opens with what changes, as algebra or before -> after",
    "give the module a docstring",
)
EFFECT = Rule(
    "effect",
    "effect and needs say what the pass shrinks, where the model stays exact and what it cannot run without",
    'declare effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE) or the like on the class',
)
PAPER = Rule(
    "paper",
    "a pass that loses something names where its method comes from",
    'declare paper = "https://..." on the class',
)
DATACLASS = Rule(
    "dataclass",
    "the class is a frozen, keyword-only dataclass of its parameters",
    "decorate it with @dataclass(frozen=True, kw_only=True)",
)
FIELDS = Rule(
    "fields",
    "each field has a help, a range and a default and strengths within it",
    "declare it as name: type = parameter(default, low=..., high=..., help=...)",
)
INVALID = Rule(
    "invalid values",
    "a value outside the declared range is a ParameterError of one shape",
    "call super().__post_init__() first, and word errors of your own in that shape: "
    "`<pass>: <field> must be <allowed>, got <value>. See ...`",
)


def check_docstring(trial: Trial) -> None:
    """The docstring opens with one imperative sentence."""
    kind = trial.kind
    DOCSTRING.expect(kind.__doc__ and kind.__doc__.strip(), kind, "no docstring")
    summary = kind.summary()
    first = summary.split()[0]
    DOCSTRING.expect(re.fullmatch(r"[A-Z].*\.", summary), kind, f"{summary!r}, which is no sentence")
    DOCSTRING.expect(". " not in summary.rstrip("."), kind, f"{summary!r}, which is several sentences")
    imperative = first.endswith("ss") or not first.endswith(("s", "ing", "ed"))
    DOCSTRING.expect(imperative, kind, f"{first!r}, which is not imperative")
    DOCSTRING.expect(len(summary) <= LONGEST_SUMMARY, kind, f"{len(summary)} letters, more than {LONGEST_SUMMARY}")


def check_module_docstring(trial: Trial) -> None:
    """The module says what changes."""
    name = trial.kind.__module__
    MODULE.expect(importlib.import_module(name).__doc__, trial.kind, f"no docstring in {name}")


def check_effect(trial: Trial) -> None:
    """Effect, needs and structures are declared, and fit each other."""
    kind = trial.kind
    effect = getattr(kind, "effect", None)
    if not isinstance(effect, Effect):
        raise EFFECT.broken(kind, f"effect = {effect!r}")
    known = bool(effect.shrinks) and SHRINKS.issuperset(effect.shrinks)
    EFFECT.expect(known, kind, f"shrinks = {effect.shrinks!r}, not some of {', '.join(sorted(SHRINKS))}")
    EFFECT.expect(isinstance(kind.needs, Needs), kind, f"needs = {kind.needs!r}")
    EFFECT.expect(effect.is_exact or not effect.rounding, kind, "rounding, which qualifies exact, though it is NOWHERE")
    for name in ("makes", "destroys"):
        stated = getattr(kind, name)
        fits = isinstance(stated, frozenset) and all(isinstance(each, Structure) for each in stated)
        EFFECT.expect(fits, kind, f"{name} = {stated!r}, not a frozenset of Structure")


def check_paper(trial: Trial) -> None:
    """A lossy pass names its source."""
    kind = trial.kind
    PAPER.expect(kind.effect.is_exact or kind.paper, kind, "no paper")
    PAPER.expect(not kind.paper or kind.paper.startswith("https://"), kind, f"paper = {kind.paper!r}")


def check_dataclass(trial: Trial) -> None:
    """The class only stores its parameters, by name, for good."""
    kind = trial.kind
    DATACLASS.expect(dataclasses.is_dataclass(kind) and "__init__" in vars(kind), kind, "no dataclass of its own")
    stated = inspect.signature(kind.__init__).parameters.values()
    by_place = [each.name for each in stated if each.kind is not each.KEYWORD_ONLY and each.name != "self"]
    DATACLASS.expect(not by_place, kind, f"fields that are taken by place: {by_place}")
    rewrite = kind()
    for each in parameters(kind):
        try:
            setattr(rewrite, each.name, each.default)
        except dataclasses.FrozenInstanceError:
            continue
        raise DATACLASS.broken(kind, f"{each.name} can be set on an instance")


def check_fields(trial: Trial) -> None:
    """Each field has a help, a lower bound where it is a number, and values within its range."""
    kind = trial.kind
    for each in parameters(kind):
        FIELDS.expect(each.help and each.help == each.help.strip(), kind, f"{each.name}: help {each.help!r}")
        FIELDS.expect(each.accepts(each.default), kind, f"{each.name}: the default {each.default!r} is out of range")
        for value in each.strengths or ():
            FIELDS.expect(each.accepts(value), kind, f"{each.name}: the strength {value!r} is out of range")
        bounded = each.type not in (int, float) or each.low is not None
        FIELDS.expect(bounded, kind, f"{each.name} has no lower bound")


def check_invalid_values(trial: Trial) -> None:
    """What is out of a field's range is refused, in one shape."""
    kind = trial.kind
    for each in parameters(kind):
        for value in invalid_values(each):
            _expect_refusal(kind, each.name, value)


def _expect_refusal(kind: type[Pass], field: str, value: Any) -> None:
    shape = rf"{kind.pass_name()}: {field} must be .+, got .*\. See `onnxcomp passes {kind.pass_name()}`\."
    try:
        kind(**{field: value})
    except ParameterError as error:
        INVALID.expect(re.fullmatch(shape, str(error)), kind, f"for {field}={value!r} the message {str(error)!r}")
        return
    except Exception as error:
        raise INVALID.broken(kind, f"for {field}={value!r} {type(error).__name__}: {error}") from error
    raise INVALID.broken(kind, f"{field}={value!r} is taken, and out of range")


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
