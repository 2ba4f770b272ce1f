"""Rewrite a large model tensor by tensor, and show what memory that takes.

    python -m benchmarks.large [--gigabytes 4] [--pass quantize-weights] [--store]

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

import psutil

from benchmarks.synthetic import large, write_model
from onnxcomp.contract import Context
from onnxcomp.model import load, save
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.registry import get_pass


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
        write_model(large(max(1, round(options.gigabytes * 4))), source)
        passes = [get_pass(name)() for name in names]
        started = time.monotonic()
        with PeakMemory() as memory:
            model = load(source)
            for rewrite in passes:
                model, outcome = apply_pass(model, rewrite, Context())
                print(f"{rewrite.pass_name()}: {len(outcome.changed)} weights, {time.monotonic() - started:.1f} s")
            files = save(model, out)
        before = sum(each.stat().st_size for each in source.parent.glob("large.onnx*"))
        after = sum(each.stat().st_size for each in files)
        print(f"{before:,} -> {after:,} bytes in {time.monotonic() - started:.1f} s")
        print(f"peak private memory above the start: {(memory.peak - memory.base) / 2**20:,.0f} MB")


if __name__ == "__main__":
    main()
