"""What static quantization costs: seconds and peak memory, beside ONNX Runtime's own quantizer in the same run.

    python -m benchmarks.static_cost MODEL CALIB.npz [--runs 3]

It wants the packages of the extra "bench": pip install -e '.[bench]'.

Every tool runs in a process of its own, one after the other, in turns. Printed are the least seconds and the
greatest peak memory of all runs, imports included, and both as ratios of ONNX Runtime's. The pass alone gets all
samples, as ONNX Runtime's does; ``onnxcomp run`` calibrates on half of them and verifies its result on the rest.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.processes import measured, peer_command

PEER = "ONNX Runtime, min-max"
ALONE = ("minmax", "error", "entropy")


def quantize(model: str, out: str, calib: str, calibrator: str) -> None:
    """The pass alone, and what prepares for it."""
    from onnxcomp.calibration import CalibrationData
    from onnxcomp.contract import Context
    from onnxcomp.model import load, save
    from onnxcomp.pipeline.apply import apply_pass
    from onnxcomp.registry import get_pass
    from onnxcomp.runtime import Session
    from onnxcomp.target import Target

    current = load(model)
    data = CalibrationData.open(calib, Session(current.to_bytes()).inputs)
    context = Context(target=Target.of("cpu"), calibration=data)
    kind = get_pass("quantize-static")
    for rewrite in (*(get_pass(name)() for name in kind.prepared_by), kind(calibrator=calibrator)):
        current, _ = apply_pass(current, rewrite, context)
    save(current, out, force=True)


def tools(model: Path, calib: Path, work: Path) -> dict[str, list[str]]:
    """The command line of each tool."""
    out = str(work / "out.onnx")
    files = [str(model), out, str(calib)]
    found = {PEER: peer_command(sys.executable, "static", model, Path(out), calib)}
    for calibrator in ALONE:
        found[f"quantize-static, {calibrator}"] = [sys.executable, __file__, "alone", *files, calibrator]
    found["onnxcomp run, minmax"] = [
        sys.executable, "-m", "onnxcomp", "run", "quantize-static", str(model), "-o", out, "--force", "-q",
        "--calib-data", str(calib), "--calibrator", "minmax",
    ]  # fmt: skip
    return found


def cost_of(command: list[str], work: Path) -> tuple[float, float]:
    """Seconds and peak MB of a command; RuntimeError with the last line that it printed where it fails."""
    cost = measured(command, work)
    if cost.failure:
        raise RuntimeError(f"{command}: {cost.failure}")
    return cost.wall_s, cost.peak_mb


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("calib", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="onnxcomp-cost-") as work:
        commands = tools(options.model.resolve(), options.calib.resolve(), Path(work))
        for _ in range(options.runs):
            for tool, command in commands.items():
                found.setdefault(tool, []).append(cost_of(command, Path(work)))
    best = {tool: (min(s for s, _ in runs), max(mb for _, mb in runs)) for tool, runs in found.items()}
    print(f"{'':30}{'seconds':>9}{'ratio':>7}{'peak MB':>9}{'ratio':>7}")
    for tool, (seconds, peak_mb) in best.items():
        ratios = seconds / best[PEER][0], peak_mb / best[PEER][1]
        print(f"{tool:30}{seconds:9.2f}{ratios[0]:7.2f}{peak_mb:9.0f}{ratios[1]:7.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["alone"]:
        quantize(*sys.argv[2:6])
    else:
        main()
