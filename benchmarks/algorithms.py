"""Bits against metric for each way to round weights, on the same bytes and bits.

    python benchmarks/algorithms.py DATA [--models NAME,...] [--bits 4,3] [--rows NAME,...] [--no-score]

DATA holds one folder a model with ``model.onnx`` and ``score.py`` (``score.py MODEL`` prints the metric,
``score.py --calib FILE`` writes calibration inputs). All weights of a model are rounded to so many bits per channel,
stored compactly, and compared with the original: divergence on the calibration part of the data (half of the inputs;
the other half is never looked at), and the test score, which is only printed. Printed too: the mean over the weights
of the relative squared error that the algorithm reports, and its processor seconds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp.contract import Context, Pass
from onnxcomp.model import Model, load, save
from onnxcomp.pipeline.api import tuner_for
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.pipeline.opening import open_data
from onnxcomp.registry import get_pass
from onnxcomp.target import Target

MODELS = ("resnet8_cifar10_tf", "efficientnet_lite0_imagenet", "minilm_l6_stsb")
PREPARED_BY = ("lift-constants", "fold-constants", "fuse-batch-norm", "remove-noops")  # exact, the same for all rows
HEADINGS = ("model", "bits", "algorithm", "bytes", "divergence", "score", "error", "seconds")
WIDTHS = (28, 4, 26, 10, 10, 10, 9, 8)


def rows(bits: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name of the row -> the pass and its parameters. The first is what the others are held against."""
    grid: dict[str, Any] = {"bits": bits, "granularity": "channel"}
    found: dict[str, tuple[str, dict[str, Any]]] = {
        f"grid, {each}": ("quantize-weights", grid | {"algorithm": each}) for each in ("nearest", "hqq", "awq", "gptq")
    }
    found["grid, gptq, zero points"] = ("quantize-weights", grid | {"algorithm": "gptq", "symmetric": False})
    found["grid, round-weights"] = ("round-weights", grid)
    found["codebook, cluster-weights"] = ("cluster-weights", {"bits": float(bits), "granularity": "channel"})
    return found


def stored(folder: Path, model: Model, *, scored: bool) -> tuple[int, str]:
    """Bytes of the model with its codes stored, and its test score."""
    compact, _ = apply_pass(model, get_pass("store-compact")(), Context())
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "model.onnx"
        size = sum(each.stat().st_size for each in save(compact, path))
        return size, score(folder, path) if scored else ""


def score(folder: Path, model: Path) -> str:
    """The number that the model's own scorer prints first."""
    command = [sys.executable, str((folder / "score.py").resolve()), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split()[1] if done.returncode == 0 else "does not run"


def prepared(folder: Path) -> Model:
    """The model after exact passes, so that every algorithm meets the same weights."""
    model = load(folder / "model.onnx")
    for each in PREPARED_BY:
        model, _ = apply_pass(model, get_pass(each)(), Context())
    return model


def context_for(model: Model, folder: Path, work: Path) -> Context:
    """What the pipeline would give to a pass: the calibration part, and the divergence from the model on it."""
    target = Target.of("cpu")
    file = work / "calib.npz"
    subprocess.run([sys.executable, str((folder / "score.py").resolve()), "--calib", str(file)], check=True)
    data = open_data(model, file, target, 0).split(seed=0)[0]
    tuner = tuner_for(model, data, "divergence", {"target": target, "metric": "divergence"})
    return Context(target=target, calibration=data, divergence=lambda other: tuner.check(other).quadratic_divergence)


def line(*cells: str) -> str:
    return " ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def table(folder: Path, work: Path, widths: list[int], wanted: list[str], *, scored: bool) -> None:
    """Print the rows of one model as they come."""
    model = prepared(folder)
    context = context_for(model, folder, work)
    original = score(folder, folder / "model.onnx") if scored else ""
    print(line(folder.name, "32", "original", f"{model.size_bytes:,}", "0", original, "", ""), flush=True)
    for bits in widths:
        for name, (rewrite, fields) in rows(bits).items():
            if not wanted or any(each in name for each in wanted):
                cells = row(folder, model, get_pass(rewrite)(**fields), context, scored=scored)
                print(line(folder.name, str(bits), name, *cells), flush=True)


def row(folder: Path, model: Model, rewrite: Pass, context: Context, *, scored: bool) -> tuple[str, ...]:
    """Bytes, divergence, score, error and seconds of one algorithm."""
    assert context.divergence is not None
    started = time.process_time()
    after, outcome = apply_pass(model, rewrite, context)
    seconds = time.process_time() - started
    errors = [each.details["error"] for each in outcome.changed if "error" in each.details]
    size, metric = stored(folder, after, scored=scored)
    divergence = context.divergence(after)
    return f"{size:,}", f"{divergence:.4g}", metric, f"{np.mean(errors):.5f}", f"{seconds:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--bits", default="4,3")
    parser.add_argument("--rows", default="", help="only rows with one of these words")
    parser.add_argument("--no-score", action="store_true")
    given = parser.parse_args()
    print(line(*HEADINGS))
    for name in given.models.split(","):
        widths, wanted = [int(each) for each in given.bits.split(",")], [each for each in given.rows.split(",") if each]
        with tempfile.TemporaryDirectory() as work:
            table(given.data / name, Path(work), widths, wanted, scored=not given.no_score)


if __name__ == "__main__":
    main()
