"""Two factors of few bits against one matrix of few bits: the bytes of either at the same harm, weight by weight.

    python -m benchmarks.lowrank_bits MODEL CALIB [--weights PATTERN,...] [--most N]

MODEL is any model, CALIB its calibration inputs as for ``--calib-data``. Half of the samples are fitted to, the other
half judge. Of each of the N largest weights that match, all that quantize-weights and cluster-weights can make of it
(those of which no other takes fewer bytes at less output error) and factors of all ranks at 3 to 5 bits are put into
the model alone; the divergence of the model's outputs from the original's is the harm. Printed for a row of harms: the
fewest bytes of one matrix, those of two factors as a share, and of what rank and bits these are.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from onnxcomp.contract import Context, Pass, Quantity
from onnxcomp.contract.weight_pass import WeightPass
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.alone import LoneWeight
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.model import Model, load
from onnxcomp.pipeline.apply import apply_choice, survey
from onnxcomp.pipeline.opening import open_data
from onnxcomp.pipeline.safety.noise_bound import NoiseBound
from onnxcomp.pipeline.weight_search.fits import fitted
from onnxcomp.registry import get_pass
from onnxcomp.target import Target
from onnxcomp.verify.verifier import Verifier

HARMS = (0.001, 0.002, 0.004, 0.008, 0.015, 0.03)
BITS = (3, 4, 5)
STEP = 1.2  # of errors between options that are put into the model
WORST = 0.3  # relative squared error of an output beyond which nothing is tried


@dataclass(frozen=True)
class Form:
    """What a weight can become: bytes, relative squared error of its outputs, divergence of the model's, in words."""

    size: float
    error: float
    harm: float
    words: str


def front(found: list[tuple[float, float, object]]) -> Iterator[tuple[float, float, object]]:
    """Of (bytes, error, what) those that leave less error than all of fewer bytes, by a step."""
    least = WORST * STEP
    for size, error, what in sorted(found, key=lambda each: each[:2]):
        if error * STEP <= least:
            least = error
            yield size, error, what


def as_one(model: Model, weight: Weight, judge: Verifier, context: Context) -> list[Form]:
    """As one matrix of few levels."""
    lone, trials = LoneWeight.of(weight), judge.trials(model)
    bound = NoiseBound.of(lone.opened())
    made = []
    for name in ("quantize-weights", "cluster-weights"):
        for _, one in get_pass(name)().strengths():  # type: ignore[attr-defined]
            assert isinstance(one, WeightPass)
            known = one.prepare(weight.graph, [weight], context).get(weight.name)
            fit = fitted(lone, one, known, context, bound, [])
            if fit is not None:
                made.append((float(fit.size_bytes), fit.error, fit))
    return [
        Form(size, error, trials.check({weight.name: fit.values()}).quadratic_divergence, fit.entry.what)  # type: ignore[attr-defined]
        for size, error, fit in front(made)
    ]


def as_two(model: Model, weight: Weight, judge: Verifier, context: Context) -> list[Form]:
    """As two factors of few bits."""
    made = []
    for bits in BITS:
        one: Pass = get_pass("factorize-linear")(bits=bits)
        for site in survey(model, one, context.limited_to([weight.name])).sites:  # type: ignore[arg-type]
            made += [(each.costs[Quantity.BYTES], each.error or 0.0, (one, each.fields)) for each in site.options]
    found = []
    for size, error, (one, fields) in front(made):  # type: ignore[misc]
        written, _ = apply_choice(model, one, {weight.name: fields}, context)  # type: ignore[arg-type]
        words = f"rank {fields['rank']}, {one.bits} bits"  # type: ignore[attr-defined]
        found.append(Form(size, error, judge.check(written).quadratic_divergence, words))
    return found


def rows(model: Model, weight: Weight, judge: Verifier, context: Context) -> Iterator[list[str]]:
    """The cells of one weight."""
    one, two = as_one(model, weight, judge, context), as_two(model, weight, judge, context)
    for at, harm in enumerate(HARMS):
        best, other = (min((each for each in forms if each.harm <= harm), key=lambda each: each.size, default=None)
                       for forms in (one, two))  # fmt: skip
        title = f"{weight.name} {'x'.join(map(str, weight.shape))}" if not at else ""
        if best is not None:
            share = f"{other.size / best.size:.2f}" if other else "none"
            yield [title, f"{harm:g}", f"{best.size:,.0f}", best.words, share, other.words if other else ""]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("calib")
    parser.add_argument("--weights", default="*", help="patterns of names, separated by commas")
    parser.add_argument("--most", type=int, default=6, help="weights, the largest first")
    options = parser.parse_args()
    model, target = load(options.model), Target.of("cpu")
    fit, unseen = open_data(model, options.calib, target, 0).split(seed=0)
    judge = Verifier(model, unseen, target=target, closed_loop=False)
    context = dataclasses.replace(Context(), calibration=fit, target=target, deadline=math.inf)
    wanted = options.weights.split(",")
    own = [each for each in weights(open_plain(model)) if any(fnmatch.fnmatch(each.name, one) for one in wanted)]
    table = Table("weight", "harm", "one, bytes", "as", "two", "as", title=str(options.model))
    for weight in sorted(own, key=lambda each: -each.size)[: options.most]:
        for cells in rows(model, weight, judge, context):
            table.add_row(*cells)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
