"""``inspect``, ``compare`` and ``bench`` from Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onnxcomp.budget import Drop
from onnxcomp.doctor import diagnosis
from onnxcomp.graph.report import inspection
from onnxcomp.interface.arguments import (
    PathLike,
    Source,
    Words,
    a_drop,
    a_metric,
    a_model,
    a_target,
    a_whole_number,
    calibration_of,
    readings_of,
    shapes_of,
)
from onnxcomp.pipeline.api import silent
from onnxcomp.pipeline.reports import bench as benches
from onnxcomp.pipeline.reports import compare as comparisons
from onnxcomp.pipeline.run import Progress
from onnxcomp.target import Target


def inspect(model: Source, *, input_shapes: Mapping[str, Sequence[int]] | None = None) -> inspection.Inspection:
    """What a model consists of: weights, bytes, operators, multiply-accumulates, and what could be gained; nothing is
    run. input_shapes: ``{"images": (1, 3, 320, 320)}``, to count at. Raises ModelError, ParameterError."""
    return inspection.inspect(a_model(model), input_shapes=shapes_of(input_shapes))


def compare(
    reference: Source,
    model: Source,
    data: Any = None,
    *,
    max_drop: Words | Drop = None,
    metric: str = "auto",
    outputs: Mapping[str, str] | None = None,
    ep: str | Target = "cpu",
    threads: int | None = None,
    custom_ops: PathLike | Iterable[PathLike] = (),
    sequence_axis: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> comparisons.Comparison:
    """Run two models on the same inputs and say how far the second's outputs are from the first's.

    data: inputs, in the forms of ``optimize``'s calibration; all are used, and None draws them at random, in
    ``input_shapes`` where these are given, which shows breakage only. The rest is as for ``optimize``. Raises
    OnnxcompError where the reference or the inputs are at fault; a model that does not run has a verdict that says so.
    """
    return comparisons.compare(
        a_model(reference, "reference"),
        a_model(model),
        calibration=calibration_of(data, sequence_axis),
        target=a_target(ep, threads=threads, custom_ops=custom_ops),
        metric=a_metric(metric),
        outputs=readings_of(outputs),
        max_drop=a_drop(max_drop),
        input_shapes=shapes_of(input_shapes),
        seed=a_whole_number("seed", seed, least=0),
        progress=progress,
    )


def bench(
    model: Source,
    other: Source | None = None,
    *,
    data: Any = None,
    runs: int = 50,
    ep: str | Target = "cpu",
    threads: int | None = None,
    custom_ops: PathLike | Iterable[PathLike] = (),
    sequence_axis: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> benches.Bench:
    """Measure latency, load time and load memory of a model, or of two in turns, and of the first how far each operator
    is from what the machine can do.

    data: where the sample comes from that they run on, as for ``compare``. runs: timed runs of each.
    input_shapes: sizes to measure at.
    Raises TargetError or VerificationError for a model that does not load or run.
    """
    return benches.bench(
        a_model(model),
        None if other is None else a_model(other, "other"),
        calibration=calibration_of(data, sequence_axis),
        target=a_target(ep, threads=threads, custom_ops=custom_ops),
        runs=a_whole_number("runs", runs, least=1),
        input_shapes=shapes_of(input_shapes),
        seed=a_whole_number("seed", seed, least=0),
        progress=progress,
    )


def diagnose(
    model: Source | None = None,
    *,
    data: Any = None,
    ep: str | Target = "cpu",
    threads: int | None = None,
    custom_ops: PathLike | Iterable[PathLike] = (),
    sequence_axis: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> diagnosis.Diagnosis:
    """Look at the machine and its ONNX Runtime, and at why a model is slow on them, as ``onnxcomp doctor`` does.

    model: None for the machine alone. data: where the sample comes from that it runs on, as for ``compare``.
    input_shapes: sizes that the model leaves open. Raises OnnxcompError for a model that does not load or run.
    """
    return diagnosis.diagnose(
        None if model is None else a_model(model),
        data=calibration_of(data, sequence_axis),
        target=a_target(ep, threads=threads, custom_ops=custom_ops),
        input_shapes=shapes_of(input_shapes),
        seed=a_whole_number("seed", seed, least=0),
        progress=progress,
    )
