"""Steps from the tables of a TOML document; every refusal names the place in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from onnxcomp.contract import Pass, parameters
from onnxcomp.errors import ParameterError, PassError, RecipeError
from onnxcomp.recipe.choose import Choose
from onnxcomp.recipe.race import Race
from onnxcomp.recipe.repeat import Repeat
from onnxcomp.recipe.sequential import Sequential, together
from onnxcomp.recipe.step import AUTO, Apply, Step
from onnxcomp.registry import get_pass

EVERY = ("when", "exclude")
Entry = Mapping[str, Any]
Made = TypeVar("Made")


def read_step(where: str, entry: Any, *, verify: str = "each", every: Iterable[str] = EVERY) -> Step:
    """The step that a table describes. verify: how sequences and rounds are judged where they do not say it; every:
    the keys that a step of any kind has here."""
    key = next((key for key in KINDS if key in entry), None) if isinstance(entry, dict) else None
    if key is None:
        raise RecipeError(f"{where}: must be a table with the key pass, choose, try, sequence or repeat.")
    read, own = KINDS[key]
    if own is not None:
        refuse_unknown(where, entry, {key, *own, *every})
    shared = {"when": entry.get("when", "always"), "exclude": _patterns(where, entry)}
    return read(where, entry, {key: shared[key] for key in every}, verify)


def _pass(where: str, entry: Entry, shared: Entry, _: str) -> Step:
    """One pass, or the choice of its strength."""
    kind, values = _stated(where, entry, {"pass", *shared})
    strength = kind.strength()
    if strength is None or values.get(strength.name) != AUTO or strength.accepts(AUTO):
        return _made(where, lambda: Apply(kind(**values), **shared))
    del values[strength.name]
    return _made(where, lambda: Choose((kind(**values),), **shared))


def _choose(where: str, entry: Entry, shared: Entry, _: str) -> Step:
    names = entry["choose"]
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise RecipeError(f"{where}: choose must be a list of passes, got {names!r}.")
    among = tuple(_kind(where, name)() for name in names)
    then, also = (_passes(where, entry, key) for key in ("then", "also"))
    return _made(where, lambda: Choose(among, then, also, **shared))


def _passes(where: str, entry: Entry, key: str) -> tuple[Any, ...]:
    """The passes under a key beside "choose"."""
    given = entry.get(key, [])
    if not isinstance(given, list):
        raise RecipeError(f"{where}: {key} must be a list of passes, got {given!r}.")
    return tuple(_inner_pass(f"{where}: {key}", each) for each in given)


def _inner_pass(where: str, entry: Any) -> Pass:
    """A table with the key pass, or the name of one alone."""
    entry = {"pass": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or "pass" not in entry:
        raise RecipeError(f"{where}: must be a pass, or a table with the key pass.")
    kind, values = _stated(where, entry, {"pass"})
    return _made(where, lambda: kind(**values))


def _try(where: str, entry: Entry, shared: Entry, _: str) -> Step:
    parts = [_candidates(where, entry, key) for key in ("try", "otherwise", "ahead")]
    return _made(where, lambda: Race(*parts, **shared))


def _candidates(where: str, entry: Entry, key: str) -> tuple[Step, ...]:
    entries = entry.get(key, [])
    if not isinstance(entries, list) or not all(entries) or (key in entry and not entries):
        raise RecipeError(f"{where}: {key} must be a list of tables with the key pass, or of lists of them.")
    return tuple(_candidate(f"{where}: {key} {number}", each) for number, each in enumerate(entries, 1))


def _candidate(where: str, entry: Any) -> Step:
    """What is tried: a step, or several in turn. What needs data is not tried without, so it does not say when."""
    several = entry if isinstance(entry, list) else [entry]
    steps = [read_step(where, each, verify="end", every=("exclude",)) for each in several]
    return _made(where, lambda: together(*steps))


def _sequence(where: str, entry: Entry, shared: Entry, verify: str) -> Step:
    verify = entry.get("verify", verify)
    steps = _inner(where, entry, "sequence", verify)
    return _made(where, lambda: Sequential(steps, verify, **shared))


def _repeat(where: str, entry: Entry, shared: Entry, verify: str) -> Step:
    steps = _inner(where, entry, "repeat", "end")
    schedule = _schedule(where, entry.get("schedule", {}))
    count = entry.get("rounds")
    if count is not None and type(count) is not int:
        raise RecipeError(f"{where}: rounds must be an integer of at least 1, got {count!r}.")
    return _made(where, lambda: Repeat(steps, schedule, count, entry.get("verify", verify), **shared))


def _inner(where: str, entry: Entry, key: str, verify: str) -> tuple[Step, ...]:
    """The steps of a list."""
    entries = entry[key]
    if not isinstance(entries, list) or not entries:
        raise RecipeError(f"{where}: {key} must be a list of steps, got {entries!r}.")
    return tuple(read_step(f"{where}: {key} {number}", each, verify=verify) for number, each in enumerate(entries, 1))


def _schedule(where: str, entry: Any) -> dict[str, list[Any]]:
    """Values by field: ``sparsity = [..]``, or ``prune-weights.sparsity = [..]``, which TOML reads as a table."""
    found: dict[str, Any] = {}
    for key, values in entry.items() if isinstance(entry, dict) else ():
        named = {f"{key}.{name}": each for name, each in values.items()} if isinstance(values, dict) else {key: values}
        found |= {_member(name): each for name, each in named.items()}
    if not isinstance(entry, dict) or not all(isinstance(each, list) for each in found.values()):
        raise RecipeError(f"{where}: schedule must be a table of fields, each with a list of values, got {entry!r}.")
    return found


def _member(key: str) -> str:
    """A field, with the name of its pass before it where one is stated."""
    stated, dot, name = key.rpartition(".")
    return f"{stated}{dot}{_field(name)}"


def _stated(where: str, entry: Entry, others: Iterable[str]) -> tuple[type[Pass], dict[str, Any]]:
    """The pass that a table names and the fields that it sets; ``others`` are its further keys."""
    kind = _kind(where, entry["pass"])
    values = {_field(key): value for key, value in entry.items() if key not in set(others)}
    refuse_unknown(f"{where} ({kind.pass_name()})", values, {each.name for each in parameters(kind)})
    return kind, values


def _kind(where: str, name: Any) -> type[Pass]:
    if not isinstance(name, str):
        raise RecipeError(f"{where}: pass must be the name of a pass, got {name!r}.")
    try:
        return get_pass(name)
    except PassError as error:
        raise RecipeError(f"{where}: {error}") from error


def _field(key: str) -> str:
    return key.replace("-", "_")


def _patterns(where: str, entry: Entry) -> tuple[str, ...]:
    patterns = entry.get("exclude", [])
    if not isinstance(patterns, list) or not all(isinstance(each, str) for each in patterns):
        raise RecipeError(f"{where}: exclude must be a list of patterns, got {patterns!r}.")
    return tuple(patterns)


def _made(where: str, make: Callable[[], Made]) -> Made:
    """What ``make`` gives, or its refusal with the place."""
    try:
        return make()
    except (ParameterError, RecipeError) as error:
        raise RecipeError(f"{where}: {error}") from error


def refuse_unknown(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise RecipeError for the first key that is none of the known ones."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise RecipeError(f"{where}: unknown key {unknown[0]}. Known keys: {', '.join(sorted(known)) or 'none'}.")


Reader = Callable[[str, Entry, Entry, str], Step]
KINDS: dict[str, tuple[Reader, tuple[str, ...] | None]] = {  # by the key that only this kind has; its further keys
    "choose": (_choose, ("then", "also")),
    "try": (_try, ("otherwise", "ahead")),
    "sequence": (_sequence, ("verify",)),
    "repeat": (_repeat, ("schedule", "rounds", "verify")),
    "pass": (_pass, None),  # the fields of the pass
}

MEANINGS: dict[str, str] = {  # of every key, for the docs
    "description": "what the recipe is for",
    "goal": '"bytes" (the default), "packed" (bytes once `onnxcomp pack` has coded them) or "latency": a step that '
    "claims speed and gives none on the target is taken back",
    "step": "the steps, in order: one `[[step]]` each",
    "pass": "one pass by its name; the other keys are its parameters (docs/passes.md), a strength may be \"auto\"",
    "choose": "names of passes with a strength: each weight gets the pass and strength that serve best",
    "then": "passes applied to what was chosen before it is judged, so that what they repair is part of the choice",
    "also": "passes that rewrite the graph at weights, beside choose: their options are searched once more where they "
    "promise less, and kept only where they take less",
    "try": "rewrites of the whole model, each a step or a list of steps in turn: all are measured on the target, the "
    "fastest within the budget is kept",
    "otherwise": "what is tried beside them where one that is faster than the rest breaks the budget",
    "ahead": "what is put ahead of the fastest where that leaves half of the budget, the mildest first, until one "
    "breaks the budget or gains less than 3%; of models of up to 2 million weights",
    "sequence": "steps in turn",
    "repeat": "steps in rounds; those of one round are judged together",
    "schedule": "values by field, one for each round: `sparsity = [0.3, 0.5]`, or `prune-weights.sparsity` where "
    "several passes have the field",
    "rounds": "how many, where no schedule says it",
    "verify": '"each": judged one by one, of rounds the first that breaks the budget is the end; "end": judged '
    "together, kept whole, in part or not at all",
    "when": '"always", or "calibration": left out where there are no calibration data',
    "exclude": "names or shell patterns of weights and nodes that the step leaves alone",
}
