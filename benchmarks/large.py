"""Rewrite a large model tensor by tensor, and show what memory that takes.

    python benchmarks/large.py [--gigabytes 4] [--pass quantize-weights] [--store]

A chain of MatMuls with external data is made in a temporary folder, each weight of 256 MB; the pass is applied
to all of them and the result is saved. Printed: seconds, bytes, and the peak memory of this process above what
it held once its libraries were loaded. Verification is another matter: it holds one session at a time, in a
process of its own, and needs what ONNX Runtime needs for the model.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper

from onnxcomp.contract import Context
from onnxcomp.model import load, save
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.registry import get_pass

WIDTH = 8192  # a weight of WIDTH x WIDTH float32 values has 256 MB


class PeakMemory:
    """The most private memory (no mapped files) that this process held while the context was open, in bytes."""

    def __enter__(self) -> PeakMemory:
        self._process = psutil.Process()
        self.base = self._private()
        self.peak = self.base
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._watcher.join()

    def _private(self) -> int:
        memory = self._process.memory_info()
        return int(memory.rss - memory.shared)

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, self._private())


def make_model(path: Path, count: int) -> None:
    """Write a model of ``count`` MatMuls, its data in one file beside it, without holding more than one weight."""
    rng = np.random.default_rng(0)
    length = WIDTH * WIDTH * 4
    initializers = []
    with path.with_suffix(".bin").open("wb") as file:
        for index in range(count):
            rng.standard_normal((WIDTH, WIDTH), np.float32).tofile(file)
            tensor = TensorProto(name=f"w{index}", dims=[WIDTH, WIDTH], data_type=TensorProto.FLOAT)
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": path.with_suffix(".bin").name, "offset": index * length, "length": length}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            initializers.append(tensor)
    nodes = [helper.make_node("MatMul", [f"t{i}", f"w{i}"], [f"t{i + 1}"]) for i in range(count)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("t0", f"t{count}")]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def main() -> None:
    """Make the model, rewrite it, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--pass", dest="rewrite", default="quantize-weights")
    parser.add_argument("--store", action="store_true", help="store compactly too")
    options = parser.parse_args()
    names = [options.rewrite, *(["store-compact"] if options.store else [])]
    with tempfile.TemporaryDirectory(prefix="onnxcomp-large-") as folder:
        source, out = Path(folder) / "large.onnx", Path(folder) / "out.onnx"
        make_model(source, max(1, round(options.gigabytes * 4)))
        passes = [get_pass(name)() for name in names]
        started = time.monotonic()
        with PeakMemory() as memory:
            model = load(source)
            for rewrite in passes:
                model, outcome = apply_pass(model, rewrite, Context())
                print(f"{rewrite.pass_name()}: {len(outcome.changed)} weights, {time.monotonic() - started:.1f} s")
            files = save(model, out)
        before = sum(each.stat().st_size for each in source.parent.glob("large.*"))
        after = sum(each.stat().st_size for each in files)
        print(f"{before:,} -> {after:,} bytes in {time.monotonic() - started:.1f} s")
        print(f"peak private memory above the start: {(memory.peak - memory.base) / 2**20:,.0f} MB")


if __name__ == "__main__":
    main()
