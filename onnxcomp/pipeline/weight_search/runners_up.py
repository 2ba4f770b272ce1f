"""What else each weight could have become, and at what price: for the receipt, and for those who ask why.

    3 bits  1,024 bytes  0.0071   <- stronger      of all options those that nothing beats in both, bytes and
    4 bits  1,327 bytes  0.0021   <- chosen        divergence; beside the chosen one the next of either side
    5 bits  1,690 bytes  0.0006   <- milder
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from onnxcomp.contract import Pass
from onnxcomp.pipeline.history.records import title
from onnxcomp.pipeline.weight_search.candidates import ANY_FAMILY, Assignment, Table, WeightOption
from onnxcomp.receipt import Alternative, WeightAccount

NEXT = 2  # options on either side of the chosen one
DIGITS = 4


def accounts(
    table: Table,
    options: Mapping[str, Sequence[WeightOption]],
    assignment: Assignment,
    candidates: Sequence[Pass],
) -> dict[str, WeightAccount]:
    """What the search knew of each weight. options: all that it chose from; candidates: by choice."""
    found = {}
    for name, own in options.items():
        chosen = assignment.get(name, own[0])
        listed = _listed(table, name, own, chosen)
        made = [_alternative(table, name, each, candidates) for each in listed]
        influence = table.influence.get((name, ANY_FAMILY))
        place = listed.index(chosen)
        found[name] = WeightAccount("", influence=_rounded(influence), chosen=place, alternatives=made)
    return found


def _listed(table: Table, name: str, options: Sequence[WeightOption], chosen: WeightOption) -> list[WeightOption]:
    """The chosen option, the next on either side, and the weight as it is; fewest bytes first."""
    rivals = [each for each in options if each.choice != chosen.choice]
    smaller = _front([each for each in rivals if each.size_bytes <= chosen.size_bytes], table, name)
    larger = _front([each for each in rivals if each.size_bytes > chosen.size_bytes], table, name)
    kept = {each.choice: each for each in (options[0], chosen, *smaller[-NEXT:], *larger[:NEXT])}
    return sorted(kept.values(), key=lambda each: (each.size_bytes, each.choice is None, each.choice or 0))


def _front(options: Sequence[WeightOption], table: Table, name: str) -> list[WeightOption]:
    """Those that none beats in both bytes and divergence, by bytes."""
    found: list[WeightOption] = []
    least = math.inf
    for each in sorted(options, key=lambda each: (each.size_bytes, _harm(table, name, each))):
        if _harm(table, name, each) < least:
            found.append(each)
            least = _harm(table, name, each)
    return found


def _harm(table: Table, name: str, option: WeightOption) -> float:
    """The divergence that is predicted, or where none was measured the error that stands for it."""
    return table.predicted(name, option) if (name, ANY_FAMILY) in table.influence else option.error


def _alternative(table: Table, name: str, option: WeightOption, candidates: Sequence[Pass]) -> Alternative:
    is_known = (name, ANY_FAMILY) in table.influence
    divergence = _rounded(table.predicted(name, option)) if is_known else None
    error = _rounded(option.error) or 0.0
    return Alternative(_words(table, option.choice, candidates), option.size_bytes, error, divergence)


def _words(table: Table, choice: int | None, candidates: Sequence[Pass]) -> str:
    if choice is None:
        return ""
    if choice in table.rewrites:
        made = table.rewrites[choice]
        fields = " ".join(f"{name}={value}" for name, value in made.fields.items())
        return f"{made.rewrite.pass_name()} {fields}".strip()
    chosen = candidates[choice % len(candidates)]
    named = title([chosen])
    strength = chosen.strength()
    if strength is None or f"{strength.name}=" in named:
        return named
    return f"{named} {strength.name}={getattr(chosen, strength.name)}"


def _rounded(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")
