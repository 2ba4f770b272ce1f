"""Low rank on scored models: what is left of them at a share of their weights, on calibration data alone.

    python -m benchmarks.lowrank DATA [--cases WORD,...]

It wants the packages of the extra "bench": pip install -e '.[bench]'. DATA is as in ``benchmarks.scored``; all of its
calibration inputs are used, and its test data for the score alone. Printed for each case: the share that is left of
the weights in question, the metric beside the original's, beside that of plain singular value decomposition at even
ranks of the same share and beside what is to be reached, latency as a ratio of the original's (medians of alternating
runs in one process, one thread), and the CPU seconds of the passes. Then the squared output errors of weighed factors
on held-back calibration data beside those of plain ones at equal rank; and a network of VGG-16's shape, of random
weights, with every 3 x 3 convolution at half its multiply-accumulates.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from benchmarks.processes import calibration_inputs
from benchmarks.scored import score
from onnxcomp.contract import Context, Pass
from onnxcomp.contract.factor_pass import SeenInputs
from onnxcomp.graph.factors.places import place_of_weight
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model, load
from onnxcomp.numerics.rounding.gram import output_error
from onnxcomp.numerics.structure.lowrank import Spectrum, truncated_svd
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.pipeline.opening import open_data
from onnxcomp.registry import get_pass
from onnxcomp.runtime import measure_latency
from onnxcomp.target import Target
from onnxcomp.verify.verifier import Verifier

RUNS, SECONDS = 30, 4.0

Step = tuple[str, Mapping[str, Any], tuple[str, ...]]  # pass, its fields, what is excluded from it


@dataclass(frozen=True)
class Case:
    """A model, the weights in question (a word of their kinds, and patterns that are not), the steps, the same without
    data, and what is to be reached: the metric in words, and the latency's ratio."""

    model: str
    kinds: frozenset[str]
    steps: tuple[Step, ...]
    plain: tuple[Step, ...]
    reach: str
    latency: float | None = None
    others: tuple[str, ...] = ()
    taps: tuple[int, ...] = ()  # of the kernels in question, where not any


LINEAR, CONV, ADD = "factorize-linear", "factorize-conv", "correct-bias"
CASES: dict[str, Case] = {
    "lenet300: first Gemm to 1/8": Case(
        "lenet300_mnist",
        frozenset({"linear"}),
        ((LINEAR, {"rank": 27}, ("3.weight", "5.weight")), ("match-outputs", {}, ())),
        ((LINEAR, {"rank": 27, "weighted": False}, ("3.weight", "5.weight")),),
        "error <= 1.65",
        others=("3.weight", "5.weight"),
    ),
    "lenet5: all to 1/4": Case(
        "lenet5_caffe_mnist",
        frozenset({"linear", "conv"}),
        ((CONV, {"ratio": 0.5}, ()), (LINEAR, {"weights": 0.24}, ()), ("match-outputs", {}, ())),
        (
            (CONV, {"ratio": 0.5, "weighted": False}, ()),
            (LINEAR, {"ratio": 0.14, "weighted": False}, ("7.weight", "0.*", "2.*")),
        ),
        "error <= 0.98",
        latency=0.75,
    ),
    "minilm: products to 80%": Case(
        "minilm_l6_stsb",
        frozenset({"linear"}),
        ((LINEAR, {"weights": 0.8}, ("*embeddings*",)),),
        ((LINEAR, {"ratio": 0.46, "weighted": False}, ("*embeddings*",)),),
        "spearman >= 85.7",
        latency=1.0,
    ),
    "minilm: table to 1/2": Case(
        "minilm_l6_stsb",
        frozenset({"embedding"}),
        ((LINEAR, {"weights": 0.5}, ("onnx::*", "*position*", "*token_type*")),),
        ((LINEAR, {"rank": 184, "weighted": False}, ("onnx::*", "*position*", "*token_type*")),),
        "spearman >= 86.0",
        others=("*position*", "*token_type*"),
    ),
    "efficientnet: 1x1 to 85%": Case(
        "efficientnet_lite0_imagenet",
        frozenset({"conv"}),
        ((LINEAR, {"weights": 0.85}, ("_fc.weight",)), (ADD, {}, ())),
        ((LINEAR, {"ratio": 0.72, "weighted": False}, ("_fc.weight",)),),
        "top-1 >= 80",
        taps=(1, 1),
    ),
}  # fmt: skip


def context_of(model: Model, calib: Path) -> Context:
    """All calibration inputs, and the divergence on them."""
    target = Target.of("cpu")
    data = open_data(model, str(calib), target, 0)
    verifier = Verifier(model, data, target=target, closed_loop=False)
    return Context(
        target=target,
        calibration=data,
        reference=Reference(model),
        divergence=lambda candidate: verifier.check(candidate).quadratic_divergence,
    )


def applied(model: Model, steps: Sequence[Step], context: Context) -> tuple[Model, float]:
    """The model after the steps, and the CPU seconds that they took."""
    start, made = time.process_time(), model
    for name, fields, exclude in steps:
        rewrite: Pass = get_pass(name)(**fields)
        made, _ = apply_pass(made, rewrite, dataclasses.replace(context, exclude=exclude))
    return made, time.process_time() - start


def size_of(model: Model, original: Model, case: Case) -> float:
    """The share that is left of the weights in question, of how many there were."""

    def counted(one: Model) -> int:
        return sum(each.size for each in weights(open_graph(one)))

    kept = Context(exclude=case.others)
    own = sum(
        each.size
        for each in weights(open_graph(original))
        if each.kinds & case.kinds and not kept.excludes(each.name) and (not case.taps or each.shape[2:] == case.taps)
    )
    return 1 - (counted(original) - counted(model)) / own


def run(case: Case, data: Path, work: Path) -> list[str]:
    """The cells of one case."""
    folder = data / case.model
    path, calib = folder / "model.onnx", work / f"{case.model}.npz"
    if not calib.exists():
        calibration_inputs(folder, calib)
    model = load(path)
    context = context_of(model, calib)
    made, seconds = applied(model, case.steps, context)
    plain, _ = applied(model, case.plain, dataclasses.replace(context, calibration=None, divergence=None))
    out, other = work / "made.onnx", work / "plain.onnx"
    out.write_bytes(made.to_bytes())
    other.write_bytes(plain.to_bytes())
    one = {name: array[:1] for name, array in np.load(calib).items()}
    took = measure_latency({"before": path, "after": out}, one, runs=RUNS, seconds=SECONDS)
    ratio = took["after"].median_ms / took["before"].median_ms
    asked = "" if case.latency is None else f" (<= {case.latency})"
    return [
        f"{size_of(made, model, case):.3f} ({size_of(plain, model, case):.3f})",
        *(score(folder, each) for each in (path, other, out)),
        case.reach,
        f"{ratio:.2f}{asked}",
        f"{seconds:.0f}",
    ]


def held_back(data: Path, work: Path) -> list[list[str]]:
    """Squared output errors of weighed factors over those of plain ones at a quarter of the full rank, on the half of
    the calibration data that they were not fitted to: lenet5's first Gemm, and the median product of minilm."""
    rows = []
    for name, wanted in ("lenet5_caffe_mnist", ["5.weight"]), ("minilm_l6_stsb", None):
        calib = work / f"{name}.npz"
        if not calib.exists():
            calibration_inputs(data / name, calib)
        model = load(data / name / "model.onnx")
        whole = open_data(model, str(calib), Target.of("cpu"), 0)
        fitted, unseen = whole.split(seed=0)
        graph = open_graph(model)
        own = [each for each in weights(graph) if each.kinds == {"linear"} and (not wanted or each.name in wanted)]
        seen, fresh = (
            Context(calibration=part).observe.moments(graph, own) for part in (fitted, unseen)
        )
        ratios = []
        for each in own:
            place = place_of_weight(each)
            assert place is not None and not isinstance(place, str)
            matrices, rank = place.matrices, place.full_rank // 4
            spectrum = Spectrum(matrices, SeenInputs(seen[each.name], fitted.sample_count).weights, rank)
            pairs = spectrum.factors(matrices, rank), [part[None] for part in truncated_svd(matrices[0], rank)]
            gram = np.asarray(fresh[each.name].gram, np.float64)
            errors = [output_error(matrices - np.matmul(left, right, dtype=np.float64), gram) for left, right in pairs]
            ratios.append(errors[0] / errors[1])
        rows.append([f"{name}, {len(own)} products", f"{float(np.median(ratios)):.3f}", "<= 0.75"])
    return rows


def vgg16() -> onnx.ModelProto:
    """A network of VGG-16's shape with random weights (He et al. 2015) for 224 x 224 images."""
    random = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    held: list[TensorProto] = []

    def add(op: str, source: str, shape: tuple[int, ...] | None = None, **attributes: Any) -> str:
        name = f"t{len(nodes)}"
        names = [source]
        if shape is not None:
            spread = math.sqrt(2 / math.prod(shape[1:]))
            drawn = (random.standard_normal(shape) * spread).astype(np.float32)
            held.append(numpy_helper.from_array(drawn, f"w{name}"))
            held.append(numpy_helper.from_array(np.zeros(shape[0], np.float32), f"b{name}"))
            names += [f"w{name}", f"b{name}"]
        nodes.append(helper.make_node(op, names, [name], name, **attributes))
        return name

    at, channels = "image", 3
    for block in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        for width in block:
            at = add("Conv", at, (width, channels, 3, 3), kernel_shape=[3, 3], pads=[1] * 4)
            at, channels = add("Relu", at), width
        at = add("MaxPool", at, kernel_shape=[2, 2], strides=[2, 2])
    at = add("Flatten", at)
    for outputs, inputs in ((4096, 25088), (4096, 4096), (1000, 4096)):
        at = add("Gemm", at, (outputs, inputs), transB=1)
        at = add("Relu", at) if outputs == 4096 else at
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 224, 224])
    result = helper.make_tensor_value_info(at, TensorProto.FLOAT, [1, 1000])
    graph = helper.make_graph(nodes, "vgg16", [image], [result], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run_vgg(work: Path) -> list[str]:
    """Latency and seconds with every convolution at half its multiply-accumulates."""
    path, out = work / "vgg16.onnx", work / "vgg16.half.onnx"
    onnx.save(vgg16(), path)
    start = time.process_time()
    made, outcome = apply_pass(load(path), get_pass(CONV)(ratio=0.5), Context())
    seconds = time.process_time() - start
    out.write_bytes(made.to_bytes())
    image = {"image": np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)}
    took = measure_latency({"before": path, "after": out}, image, runs=10, seconds=SECONDS)
    ratio = took["after"].median_ms / took["before"].median_ms
    return ["VGG-16's shape", f"{len(outcome.changed)} of 13 split", f"{ratio:.2f} (<= 0.6)", f"{seconds:.0f} (<= 60)"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--cases", help="words of the cases' names, separated by commas; all of them by default")
    options = parser.parse_args()
    words = options.cases.split(",") if options.cases else None

    def is_wanted(name: str) -> bool:
        return words is None or any(each in name for each in words)

    console = Console(width=170)
    data = options.data.resolve()
    with tempfile.TemporaryDirectory(prefix="onnxcomp-lowrank-") as folder:
        work = Path(folder)
        for name, case in CASES.items():
            if is_wanted(name):
                columns = "case", "left (plain)", "original", "plain", "weighed", "asked", "latency", "CPU s"
                console.print(table(columns, [[name, *run(case, data, work)]]))
        if is_wanted("held back"):
            console.print(table(("held back", "error over plain's", "asked"), held_back(data, work)))
        if is_wanted("vgg"):
            console.print(table(("network", "convolutions", "latency", "CPU s"), [run_vgg(work)]))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The rows under these headings."""
    made = Table(*columns, box=None)
    for row in rows:
        made.add_row(*row)
    return made


if __name__ == "__main__":
    main()
