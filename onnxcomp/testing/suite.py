"""The checks, and which of them a pass is held to: that follows from what its class declares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from onnxcomp.contract import Pass, SitePass
from onnxcomp.contract.weight_pass import WeightPass
from onnxcomp.testing.by_itself import check_by_itself
from onnxcomp.testing.declarations import (
    check_dataclass,
    check_docstring,
    check_effect,
    check_fields,
    check_invalid_values,
    check_module_docstring,
    check_paper,
)
from onnxcomp.testing.results import (
    check_acts,
    check_choices,
    check_determinism,
    check_encodings,
    check_input_kept,
    check_outcome,
    check_result,
    check_survives,
)
from onnxcomp.testing.selection import (
    check_deadline,
    check_exclude,
    check_exclude_all,
    check_include,
    check_taking_back,
)
from onnxcomp.testing.sites import (
    check_options,
    check_own_choice,
    check_sites,
    check_subsets,
    check_touches,
    check_weights_alone,
)
from onnxcomp.testing.structures import check_origins, check_structures_destroyed, check_structures_made
from onnxcomp.testing.trial import DRAWN, Sample, Trial

DECLARED = (
    check_docstring, check_module_docstring, check_effect, check_paper, check_dataclass, check_fields,
    check_invalid_values,
)  # fmt: skip
DONE = (
    check_survives, check_result, check_acts, check_determinism, check_input_kept, check_outcome, check_encodings,
    check_origins, check_structures_made, check_structures_destroyed, check_exclude_all, check_exclude, check_include,
    check_deadline, check_taking_back, check_choices,
)  # fmt: skip
AT_SITES = (check_sites, check_own_choice, check_subsets, check_touches, check_options)


def checks_of(
    kind: type[Pass], *, samples: Sequence[Sample] = (), models: int = DRAWN, thorough: bool = False
) -> list[tuple[str, Callable[[], None]]]:
    """The checks that a pass is held to, by name, in an order in which the plainest fault comes first.

    samples: models of the author's own, which meet every check. models: how many drawn ones beside them; each kind of
    layer stands first in two of all. thorough: all of these meet each check, where else some do; that takes minutes.
    """
    trial = Trial(kind, tuple(samples), models, thorough)
    return [(_name(each), partial(each, trial)) for each in _applicable(kind)]


def check_pass(
    kind: type[Pass], *, samples: Sequence[Sample] = (), models: int = DRAWN, thorough: bool = False
) -> None:
    """Hold a pass to all that it owes. Raises AssertionError, which says what it claims, what was found and what to do.

    samples, models, thorough: see ``checks_of``, which gives the same checks one by one.
    """
    for _, check in checks_of(kind, samples=samples, models=models, thorough=thorough):
        check()


def _applicable(kind: type[Pass]) -> list[Callable[[Trial], None]]:
    chosen: list[Callable[[Trial], None]] = [*DECLARED, *DONE]
    if issubclass(kind, SitePass):
        chosen += AT_SITES
        if kind().composes():
            chosen.append(check_weights_alone)
    if issubclass(kind, WeightPass):
        chosen.append(check_by_itself)
    return chosen


def _name(check: Callable[[Trial], None]) -> str:
    return check.__name__.removeprefix("check_")
