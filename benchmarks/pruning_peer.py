"""Prune one model with onnxsim: what this package's pruning is measured beside.

python benchmarks/pruning_peer.py magnitude|wanda|sparsegpt MODEL OUT CALIB.npz SHARE|N:M

It runs in an environment of its own, which has onnxsim 0.8 and onnxruntime.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnx
import onnxsim  # type: ignore[import-not-found]  # of the peer's environment

BATCH = 10
MOST_BATCHES = 50


def main(method: str, model: str, out: str, calib: str, wanted: str) -> None:
    """Prune by the method's own defaults, but for the share and the samples."""
    fields: dict[str, Any] = {}
    if ":" in wanted:
        fields["n"], fields["m"] = map(int, wanted.split(":"))
    else:
        fields["sparsity"] = float(wanted)
    if method != "magnitude":
        arrays = dict(np.load(calib))
        count = len(next(iter(arrays.values())))
        starts = range(0, min(count, BATCH * MOST_BATCHES), BATCH)
        batches = [{name: each[at : at + BATCH] for name, each in arrays.items()} for at in starts]
        fields |= {"calibration_data": batches, "num_samples": len(batches)}
    prune = getattr(onnxsim, f"apply_{method}_pruning")
    onnx.save(prune(onnx.load(model), **fields), out)


if __name__ == "__main__":
    main(*sys.argv[1:6])
