"""Whether the threshold holds on kinds that it was not fitted to: leave one family of models out, fit, test on it.

Fitted is what all lenses are scaled by together: the loosest limit at which at most one pair in a hundred of the other
families is a false accept, and none loses over two points. Pairs whose change no compared number shows are left to the
probe of weights, which no limit replaces.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.judge.tables import Pair, is_harmful, is_harmless

LIMITS = tuple(float(each) for each in np.geomspace(0.005, 0.3, 60))
MOST_ACCEPTS = 0.01
GROSS = 2.0  # points
UNSEEN = 1e-6
SLOPE_FROM, SLOPE_TO = 0.003, 0.2  # divergences through which the loss is fitted


def accepts(found: Sequence[Pair], limit: float) -> list[Pair]:
    """The harmful pairs that pass at this limit."""
    return [pair for pair in found if is_harmful(pair) and _passes(pair, limit) and pair["divergence"] > UNSEEN]


def fitted(found: Sequence[Pair]) -> float:
    """The loosest limit that the pairs bear."""
    best = LIMITS[0]
    for limit in LIMITS:
        wrong = accepts(found, limit)
        if len(wrong) > MOST_ACCEPTS * len(found) or any(pair["loss"] > GROSS for pair in wrong):
            break
        best = limit
    return best


def table(found: Sequence[Pair]) -> str:
    """For each family: the limit fitted to the others, and what it does on this one."""
    lines = [
        "| left out | pairs | limit fitted to the others | false accepts | over 2 points | false refusals |",
        "|---|---|---|---|---|---|",
    ]
    counts = np.zeros(5, int)
    for kind in sorted({pair["kind"] for pair in found}):
        own, others = ([pair for pair in found if (pair["kind"] == kind) is same] for same in (True, False))
        limit = fitted(others)
        wrong = accepts(own, limit)
        harmless = [pair for pair in own if is_harmless(pair)]
        refused = [pair for pair in harmless if not _passes(pair, limit)]
        gross = sum(pair["loss"] > GROSS for pair in wrong)
        counts += (len(own), len(wrong), gross, len(refused), len(harmless))
        words = f"{len(wrong)} | {gross} | {len(refused)} of {len(harmless)}"
        lines.append(f"| {kind} | {len(own)} | {limit:.3f} | {words} |")
    pairs, wrong_count, gross, refusals, harmless_count = counts.tolist()
    total = f"{wrong_count} ({wrong_count / max(1, pairs):.2%}) | {gross} | {refusals} of {harmless_count}"
    return "\n".join([*lines, f"| **all** | {pairs} | | {total} |"])


def slopes(found: Sequence[Pair], limit: float) -> str:
    """Points lost at the limit, by model and by what counted: a line through the origin, by least squares."""
    lines = ["| model | counted by | pairs | points lost at the limit |", "|---|---|---|---|"]
    for name in sorted({pair["model"] for pair in found}):
        near = [p for p in found if p["model"] == name and SLOPE_FROM < (p["divergence"] or 0.0) < SLOPE_TO]
        if len(near) < 4:
            continue
        x, y = (np.array([pair[key] for pair in near]) for key in ("divergence", "loss"))
        w = 1 / (np.array([pair["se"] for pair in near]) ** 2 + 0.05)
        counted = [max(pair["each"], key=lambda each: each["value"])["measure"] for pair in near if pair["each"]]
        most = max(set(counted), key=counted.count) if counted else ""
        lines.append(f"| {name} | {most} | {len(near)} | {limit * (w * x * y).sum() / (w * x * x).sum():.2f} |")
    return "\n".join(lines)


def _passes(pair: Pair, limit: float) -> bool:
    return pair["divergence"] is not None and pair["divergence"] <= limit
