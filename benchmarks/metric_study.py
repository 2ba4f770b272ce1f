"""Which divergence parts harmless compression from harmful: many variants of the scored models, with their scores.

    python benchmarks/metric_study.py make DATA SCRATCH [MODEL ...]   # variants, their outputs and true scores
    python benchmarks/metric_study.py table SCRATCH                   # the default metric beside the lost points

DATA holds one folder a model with ``model.onnx`` and ``score.py`` (``score.py --calib FILE`` writes the
calibration inputs, ``score.py MODEL`` prints the metric first). The variants are naive on purpose and
share no code with the passes: rounding per channel, k-means per tensor, a scale per channel times one
codebook, magnitude pruning, ternary weights, ONNX Runtime's own static int8. The divergence is measured
on calibration inputs alone; the test score only says afterwards which variants were harmless.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

Array = NDArray[Any]
BATCH = 25
MIN_WEIGHT_SIZE = 64


def weight_tensors(model: onnx.ModelProto) -> Iterator[tuple[TensorProto, int]]:
    """Float tensors of two or more dimensions that Conv, Gemm, MatMul or Gather reads, with the channel axis."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            held[node.output[0]] = node.attribute[0].t
    seen: set[str] = set()
    for node in model.graph.node:
        position = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}.get(node.op_type)
        if position is None or node.input[position] not in held or node.input[position] in seen:
            continue
        tensor = held[node.input[position]]
        size = int(np.prod(tensor.dims)) if tensor.dims else 1
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or size < MIN_WEIGHT_SIZE:
            continue
        seen.add(node.input[position])
        flipped = any(item.name == "transB" and item.i for item in node.attribute)
        by_rows = node.op_type in ("Conv", "Gather") or (node.op_type == "Gemm" and flipped)
        yield tensor, 0 if by_rows else len(tensor.dims) - 1


def channel_amax(weight: Array, axis: int) -> Array:
    """Largest magnitude a channel, kept broadcastable; ones where a channel is zero."""
    others = tuple(a for a in range(weight.ndim) if a != axis)
    amax = np.abs(weight).max(axis=others, keepdims=True)
    return np.where(amax == 0, 1, amax)


def round_per_channel(bits: float) -> Callable[[Array, int], Array]:
    """Symmetric round to nearest; fractional ``bits`` give odd numbers of levels between powers of two."""
    top = round(2 ** (bits - 1)) - 1

    def apply(weight: Array, axis: int) -> Array:
        scale = channel_amax(weight, axis) / top
        return np.clip(np.round(weight / scale), -top, top) * scale

    return apply


def lloyd(values: Array, count: int) -> Array:
    """Each value replaced by its centroid after 60 Lloyd steps from quantile seeds."""
    ordered = np.sort(values.ravel().astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    density = np.quantile(ordered, (np.arange(count) + 0.5) / count)
    centres = 0.5 * (density + np.linspace(ordered[0], ordered[-1], count))
    for _ in range(60):
        edges = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        bounds = np.concatenate([[0], edges, [len(ordered)]])
        sizes = np.diff(bounds)
        centres = np.where(sizes > 0, np.diff(sums[bounds]) / np.maximum(sizes, 1), centres)
        centres = np.sort(centres)
    codes = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
    return np.asarray(centres[codes])


def cluster(bits: int) -> Callable[[Array, int], Array]:
    """k-means over the whole tensor."""
    return lambda weight, axis: lloyd(weight, 2**bits)


def cluster_scaled(bits: int) -> Callable[[Array, int], Array]:
    """k-means over the tensor after each channel is divided by its largest magnitude."""

    def apply(weight: Array, axis: int) -> Array:
        scale = channel_amax(weight, axis)
        return lloyd(weight / scale, 2**bits) * scale

    return apply


def prune(sparsity: float) -> Callable[[Array, int], Array]:
    """The smallest magnitudes of each tensor set to zero."""

    def apply(weight: Array, axis: int) -> Array:
        cut = np.quantile(np.abs(weight), sparsity)
        return np.where(np.abs(weight) <= cut, 0, weight)

    return apply


def make_variant(source: Path, target: Path, change: Callable[[Array, int], Array]) -> None:
    """Write ``source`` with every weight changed."""
    model = onnx.load(source)
    for tensor, axis in weight_tensors(model):
        weight = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(change(weight, axis).astype(np.float32), tensor.name))
    onnx.save(model, target)


def make_static_int8(source: Path, target: Path, feeds: dict[str, Array]) -> None:
    """ONNX Runtime's own QDQ: uint8 activations, int8 weights per channel, min-max calibration."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{k: v[i : i + BATCH] for k, v in feeds.items()} for i in range(0, 100, BATCH)]

        def get_next(self) -> dict[str, Array] | None:
            return self.left.pop(0) if self.left else None

    prepared = target.with_suffix(".pre.onnx")
    model = onnx.load(source)
    if model.opset_import[0].version < 13:  # per-channel DequantizeLinear
        model = onnx.version_converter.convert_version(model, 13)
    onnx.save(model, prepared)
    quant_pre_process(str(prepared), str(prepared), skip_symbolic_shape=True)
    q.quantize_static(
        str(prepared),
        str(target),
        Reader(),
        per_channel=True,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
    )
    prepared.unlink()


VARIANTS: dict[str, Callable[[Array, int], Array]] = {
    **{f"round-{bits:g}": round_per_channel(bits) for bits in (8, 7, 6.5, 6, 5.5, 5, 4.5, 4, 3.5, 3, 2.5)},
    **{f"kmeans-{bits}": cluster(bits) for bits in (8, 7, 6, 5, 4, 3, 2)},
    **{f"scaled-{bits}": cluster_scaled(bits) for bits in (8, 7, 6, 5, 4, 3, 2)},
    **{f"prune-{share:g}": prune(share) for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)},
}


def outputs_of(path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    """Every output over the calibration inputs, in batches (all these models batch along axis 0)."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    count = len(next(iter(feeds.values())))
    parts = [session.run(names, {k: v[i : i + BATCH] for k, v in feeds.items()}) for i in range(0, count, BATCH)]
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


def true_score(folder: Path, model: Path) -> float:
    """The first number that score.py prints, higher is better (errors are negated)."""
    shown = subprocess.run(
        [sys.executable, str(folder / "score.py"), str(model)], capture_output=True, text=True, check=True
    ).stdout.split()
    return -float(shown[1]) if "error" in shown[0] else float(shown[1])


def make(data: Path, scratch: Path, wanted: list[str]) -> None:
    """Write calibration inputs, outputs of every variant and a scores.json a model into ``scratch``."""
    for folder in sorted(path for path in data.iterdir() if (path / "score.py").is_file()):
        if wanted and folder.name not in wanted:
            continue
        place = scratch / folder.name
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, str(folder / "score.py"), "--calib", str(place / "calib.npz")], check=True)
        feeds = dict(np.load(place / "calib.npz"))
        scores_file = place / "scores.json"
        scores = json.loads(scores_file.read_text()) if scores_file.is_file() else {}
        for name in ["float32", *VARIANTS, "static-int8"]:
            if name in scores:
                continue
            started = time.time()
            path = folder / "model.onnx" if name == "float32" else place / "variant.onnx"
            if name == "static-int8":
                make_static_int8(folder / "model.onnx", path, feeds)
            elif name != "float32":
                make_variant(folder / "model.onnx", path, VARIANTS[name])
            np.savez(place / f"{name}.npz", **outputs_of(path, feeds))
            scores[name] = true_score(folder, path)
            scores_file.write_text(json.dumps(scores, indent=1))
            print(folder.name, name, scores[name], f"{time.time() - started:.1f} s", flush=True)


def verification_part(folder: Path) -> tuple[list[int], dict[str, Array]]:
    """Which calibration samples the Verifier would use (seed 0), and all the inputs."""
    from onnxcomp.calibration import CalibrationData
    from onnxcomp.runtime import ValueSpec

    feeds = dict(np.load(folder / "calib.npz"))
    specs = [
        ValueSpec(name, "tensor(int64)" if v.dtype == np.int64 else "tensor(float)", ("batch", *v.shape[1:]))
        for name, v in feeds.items()
    ]
    part = CalibrationData.open(folder / "calib.npz", specs).split(seed=0)[1]
    return [int(i) for i in part.order[:, 1]], feeds


def table(scratch: Path) -> None:
    """Divergence by onnxcomp's own metric on the verification part, sorted, beside the points lost."""
    from onnxcomp.numerics import metrics
    from onnxcomp.verify import DEFAULT_MAX_DIVERGENCE

    for place in sorted(path.parent for path in scratch.glob("*/scores.json")):
        scores = json.loads((place / "scores.json").read_text())
        chosen, feeds = verification_part(place)
        mask = feeds["attention_mask"][chosen] > 0 if "attention_mask" in feeds else None
        original = next(iter(np.load(place / "float32.npz").values()))[chosen]
        channels = original.ndim - 2
        output = metrics.describe(lambda o=original, m=mask: [(o, m)], channel_axis=channels)  # type: ignore[misc]
        print(f"\n## {place.name}: {scores['float32']:g}, {output.kind}, H {output.entropy:.4g}, {len(chosen)} samples")
        print("\n| variant | points lost | divergence | 95% interval | passes |\n|---|---|---|---|---|")
        rows = []
        for name, score in scores.items():
            other = next(iter(np.load(place / f"{name}.npz").values()))[chosen]
            found = metrics.divergences(output, original, other, mask)
            root = np.sqrt if "embedding" in found else None
            got = max((metrics.estimate(v, transform=root) for v in found.values()), key=lambda each: each.value)
            rows.append((got.value, name, scores["float32"] - score, got.low, got.high))
        for value, name, lost, low, high in sorted(rows):
            passes = "yes" if value <= DEFAULT_MAX_DIVERGENCE else "no"
            print(f"| {name} | {lost:.2f} | {value:.4f} | {low:.4f} to {high:.4f} | {passes} |")


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        table(Path(sys.argv[2]))
