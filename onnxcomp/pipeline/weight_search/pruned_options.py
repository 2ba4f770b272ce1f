"""Options that prune a weight beside those that do not: their errors are foreseen least, and few are worth a trial.

Without data zeros cost what the values were; with data the values that stay make up for them. So pruned options are
counted for less before they are made, what would be taken without them is made all the same, and made they stay only
where they are clearly better than what has no such zeros. What a search finds without them is never given up for more.
"""

from __future__ import annotations

from dataclasses import replace

from onnxcomp.pipeline.weight_search.candidates import Table, WeightOption


def foresee_compensation(table: Table) -> None:
    """Count the errors of what is pruned for what they will be next to those of others, once data are drawn on."""
    factor = table.tuning.compensated
    for name, found in table.options.items():
        table.options[name] = [
            replace(each, error=factor * each.error)
            if is_pruned(table, each) and not table.is_made(name, each)
            else each
            for each in found
        ]


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
