"""Options that prune a weight beside those that do not: their errors are foreseen least, and few are worth a trial.

Without data zeros cost what the values were; with data the values that stay make up for them. So pruned options are
counted for less before they are made, what would be taken without them is made all the same, and made they stay only
where they are clearly better than what has no such zeros. What a search finds without them is never given up for more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnxcomp.pipeline.weight_search.candidates import Candidates, Table, WeightOption

SEVERAL = 3  # weights of one shape, from which on the first tells of the others


def foresee_compensation(table: Table, factors: Mapping[str, float] | None = None) -> None:
    """Count the errors of what is pruned for what they will be next to those of others, once data are drawn on.
    factors: by weight, where they are not as usual."""
    for name, found in table.options.items():
        factor = (factors or {}).get(name, table.tuning.compensated)
        table.options[name] = [
            replace(each, error=factor * each.error) if _is_foreseen(table, name, each) else each for each in found
        ]


def compensation(table: Table, candidates: Candidates) -> dict[str, float]:
    """What data leave of the error of a pruned option next to what they leave of others, by weight, where that is not
    as usual. candidates: that draw on data. Where these show nothing of a weight's inputs all of it is left; of several
    weights of one shape the first tells, by a fit of either kind."""
    pruned = {name: [each for each in own if _is_foreseen(table, name, each)] for name, own in table.options.items()}
    factors: dict[str, float] = {}
    alike: dict[tuple[int, ...], list[str]] = {}
    for weight, known in candidates.tasks({name: [each.choice or 0 for each in own] for name, own in pruned.items()}):
        if any(each is not None for each in known.values()):
            alike.setdefault(weight.values.shape, []).append(weight.name)
        else:
            factors[weight.name] = 1.0
    for names in alike.values():
        if len(names) >= SEVERAL:
            told = _told(table, candidates, names[0], pruned[names[0]])
            factors |= dict.fromkeys(names, min(1.0, max(told, table.tuning.compensated)))
    return factors


def _is_foreseen(table: Table, name: str, option: WeightOption) -> bool:
    return is_pruned(table, option) and not table.is_made(name, option)


def _told(table: Table, candidates: Candidates, name: str, pruned: Sequence[WeightOption]) -> float:
    """What data leave of a pruned option's error divided by what they leave of another one's; 0 where either cannot be
    made."""
    dense = [each for each in table.options[name] if each.choice is not None and not is_pruned(table, each)]
    tried = [_nearest(table, options) for options in (pruned, dense)]
    choices = [each.choice for each in tried if each is not None and each.choice is not None]
    fits = next((found for _, found in candidates.made(candidates.tasks({name: choices}))), {})
    left = [fits[each.choice].error / each.error for each in tried if each is not None and each.choice in fits]
    return left[0] / left[1] if len(left) == len(tried) and left[1] else 0.0


def _nearest(table: Table, options: Sequence[WeightOption]) -> WeightOption | None:
    """The option whose error is nearest to that at which influence is measured."""
    able = [each for each in options if each.error]
    return min(able, key=lambda each: abs(math.log(each.error / table.tuning.probe_error)), default=None)


def without_pruned(table: Table) -> Table:
    """The table without the options that prune; what it was measured by is shared."""
    options = {
        name: [each for each in own if each.choice is None or not is_pruned(table, each)]
        for name, own in table.options.items()
    }
    return replace(table, options=options)


def leave_out_idle(table: Table) -> None:
    """Leave out pruned options beside which one without a mask takes no more bytes and has not much more error."""
    more = table.tuning.dominating
    for name, found in table.options.items():
        dense = [each for each in found if not is_pruned(table, each)]
        table.options[name] = [
            each
            for each in found
            if not is_pruned(table, each)
            or all(one.size_bytes > each.size_bytes or one.error > more * each.error for one in dense)
        ]


def is_pruned(table: Table, option: WeightOption) -> bool:
    """Whether an option leaves so many zeros that they are a mask."""
    return option.zeros > table.masked_from
