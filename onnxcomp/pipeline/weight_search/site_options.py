"""What the sites of passes that rewrite the graph can become, beside what values can: options of one table.

A site that has the name of a weight is that weight: it is rewritten or gets other values, not both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from onnxcomp.contract import Context, Fields, Quantity, Site, SitePass
from onnxcomp.errors import RecipeError
from onnxcomp.model import Model
from onnxcomp.pipeline.apply import survey
from onnxcomp.pipeline.weight_search.candidates import Rewrite, Table, WeightOption, completed


def add_sites(table: Table, model: Model, passes: Sequence[SitePass], context: Context, *, first: int) -> None:
    """Add the options of these passes' sites in the model to the table.

    first: a number from which on choices and families are free. Raises RecipeError where sites do not say what their
    options take and how far these are from the original.
    """
    whole = dataclasses.replace(context, deadline=math.inf)  # a rewrite that is cut short would be another choice
    size_bytes = {name: float(found[0].size_bytes) for name, found in table.options.items()}
    choices: dict[object, int] = {}
    for index, rewrite in enumerate(passes):
        found = survey(model, rewrite, context)
        table.skipped.extend(found.skipped)
        for site in found.sites:
            _refuse_unknown(rewrite, site)
            size_bytes[site.name] = site.costs[Quantity.BYTES]
            table.macs[site.name] = site.costs.get(Quantity.MACS, 0.0)
            for each in site.options:
                choice = choices.setdefault((index, _key(each.fields)), first + len(choices))
                table.rewrites[choice] = Rewrite(rewrite, each.fields, whole)
                size, macs = int(each.costs[Quantity.BYTES]), each.costs.get(Quantity.MACS)
                option = WeightOption(choice, size, each.error or 0.0, first + index, macs)
                table.options.setdefault(site.name, []).append(option)
    completed(table, size_bytes)


def _key(fields: Fields) -> tuple[tuple[str, object], ...]:
    return tuple(sorted(fields.items()))


def _refuse_unknown(rewrite: SitePass, site: Site) -> None:
    known = all(each.error is not None and Quantity.BYTES in each.costs for each in site.options)
    if not known or Quantity.BYTES not in site.costs:
        raise RecipeError(
            f'{rewrite.pass_name()}: "auto" needs bytes and error of what {site.name} can become, which are unknown.'
        )
