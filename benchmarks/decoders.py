"""What compact storage costs when a session is created, and that it costs nothing at inference.

    python benchmarks/decoders.py [--weights 20] [--prefer bytes|load]

A model of five MatMuls with 20 million weights in all is stored in many ways. For each: bytes of the file
against float32, time to create a session and peak memory above an empty process (each in its own process,
the median of three), and the time of a run against float32, alternated in this process.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.contract import Context
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.model import Model, load
from onnxcomp.registry import get_pass
from onnxcomp.runtime.isolated import measure_load
from onnxcomp.runtime.measure import measure_latency

LAYERS, OPSET, IR_VERSION = 5, 17, 8
RUNS, LOADS = 15, 3


def model_of(draw: Callable[[int], Array], side: int) -> Model:
    """A chain of MatMuls whose weights ``draw`` makes: n -> (n,) float32."""
    weights = [
        numpy_helper.from_array(draw(side * side).reshape(side, side), f"W{index}") for index in range(LAYERS)
    ]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"W{i}"], [f"x{i + 1}"]) for i in range(LAYERS)]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", side]) for name in ("x0", f"x{LAYERS}")
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    imports = [helper.make_opsetid("", OPSET)]
    return load(helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION))


def kinds() -> dict[str, Callable[[int], Array]]:
    """Name -> values of that kind. Random levels take part equally, so nothing but their number is used."""
    rng = np.random.default_rng(0)

    def normal(count: int) -> Array:
        return (rng.standard_normal(count) * 0.02).astype(np.float32)

    def levels(count: int, number: int) -> Array:
        return np.sort(normal(number))[rng.integers(0, number, count)]

    def pruned(values: Array, share: float) -> Array:
        return np.where(rng.random(values.size) < share, np.float32(0), values)

    def grid(count: int, half: int) -> Array:
        codes = np.clip(np.rint(rng.standard_normal(count) * half / 4.5), -half, half)
        return (codes * np.float32(0.01)).astype(np.float32)

    found: dict[str, Callable[[int], Array]] = {"float32": normal}
    found["float16"] = lambda n: normal(n).astype(np.float16).astype(np.float32)
    for number in (256, 128, 64, 32, 16, 8, 6, 5, 4, 3, 2):
        found[f"{number} levels"] = lambda n, number=number: levels(n, number)  # type: ignore[misc]
    found["grid of 8 bits, normal"] = lambda n: grid(n, 127)
    found["grid of 6 bits, normal"] = lambda n: grid(n, 31)
    found["90% zeros"] = lambda n: pruned(normal(n), 0.9)
    found["50% zeros, 16 levels"] = lambda n: pruned(levels(n, 16), 0.5)
    found["90% zeros, 16 levels"] = lambda n: pruned(levels(n, 16), 0.9)
    return found


def stored(model: Model, prefer: str) -> tuple[Model, str]:
    """The model as store-compact writes it, and how."""
    graph = open_graph(model)
    outcome = get_pass("store-compact")(prefer=prefer).apply(graph, Context())  # type: ignore[call-arg]
    what = outcome.changed[0].what if outcome.changed else "plain"
    return close_graph(graph), what


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=float, default=20, help="millions")
    parser.add_argument("--prefer", choices=("bytes", "load"), default="bytes")
    parser.add_argument("--only", help="part of the names to measure")
    arguments = parser.parse_args()
    side = round((arguments.weights * 1e6 / LAYERS) ** 0.5)
    feeds = {"x0": np.ones((1, side), np.float32)}
    print(f"| {'values':24} | {'stored as':52} | bytes | create ms | peak MB | run / float32 |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = model_of(kinds()["float32"], side).materialize(folder / "float32")
        for kind, draw in kinds().items():
            if arguments.only and arguments.only not in kind:
                continue
            model, what = stored(model_of(draw, side), arguments.prefer)
            path = model.materialize(folder / "model")
            opened = measure_load(path, runs=LOADS)
            latency = measure_latency({"float32": reference, "stored": path}, feeds, runs=RUNS)
            ratio = latency["stored"].best_ms / latency["float32"].best_ms
            size = model.size_bytes / (LAYERS * side * side * 4)
            print(
                f"| {kind:24} | {what:52} | {size:.3f} | {1e3 * opened.seconds:.0f} | "
                f"{opened.peak_bytes / 1e6:.0f} | {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
