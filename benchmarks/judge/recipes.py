"""What the recipes themselves cost: each model optimized with its calibration inputs alone, then scored."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.judge import catalogue
from benchmarks.judge.scoring import Scorer


def optimized(name: str, recipe: str, scratch: Path) -> dict[str, Any]:
    """Bytes, seconds, verdict and loss of one model by one recipe; the result is kept in ``scratch``."""
    from onnxcomp import optimize

    started = time.monotonic()
    source = catalogue.model_path(name)
    result = optimize(source, recipe=recipe, calibration=str(catalogue.calibration_path(name)), measure=False)
    seconds = time.monotonic() - started
    path = scratch / "recipes" / recipe / f"{name}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    result.save(path, force=True)
    data = path.with_name(path.name + ".data")
    size = path.stat().st_size + (data.stat().st_size if data.exists() else 0)
    loss = Scorer(name, scratch / "units").loss(path.read_bytes())
    return asdict(loss) | {
        "bytes": size,
        "original_bytes": source.stat().st_size,
        "seconds": round(seconds, 1),
        "verdict": result.receipt.verdict,
        "notes": result.receipt.notes,
    }
