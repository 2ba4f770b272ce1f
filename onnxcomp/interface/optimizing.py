"""``optimize``, ``run`` and ``distill`` from Python: the options of the command line as keywords."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from onnxcomp.budget import NO_LIMIT, Budget, Drop, Goal
from onnxcomp.contract import Pass
from onnxcomp.errors import ParameterError
from onnxcomp.interface.arguments import (
    PathLike,
    Source,
    Words,
    a_budget,
    a_metric,
    a_model,
    a_recipe,
    a_single_pass,
    a_target,
    a_whole_number,
    calibration_of,
    in_words,
    names_of,
    readings_of,
    shapes_of,
)
from onnxcomp.pipeline import api
from onnxcomp.pipeline.result import Result
from onnxcomp.pipeline.run import Progress
from onnxcomp.pipeline.training_data import TrainingOptions
from onnxcomp.recipe import Recipe
from onnxcomp.recipe.student import StudentShape, distilling
from onnxcomp.target import Target
from onnxcomp.training.engines import AUTO


class Options(TypedDict, total=False):
    """The keywords of ``optimize`` that ``run`` and ``distill`` hand on to it."""

    max_drop: Words | Drop
    target_size: str | float | Goal | None
    target_latency: str | float | Goal | None
    time_budget: Words
    metric: str
    outputs: Mapping[str, str] | None
    exclude: str | Iterable[str]
    ep: str | Target
    threads: int | None
    target_cpu: str | None
    min_ort: str | tuple[int, int] | None
    custom_ops: PathLike | Iterable[PathLike]
    sequence_axis: int | None
    input_shapes: Mapping[str, Sequence[int]] | None
    reference: Source | None
    train_data: Any
    train_time: Words
    engine: str | None
    checkpoints: PathLike | None
    seed: int
    jobs: int | None
    cluster: str | None
    measure: bool
    progress: Progress
    budget: Budget | None
    target: str | Target | None
    training: TrainingOptions | None


def optimize(
    model: Source,
    calibration: Any = None,
    *,
    recipe: str | PathLike | Recipe | Pass = "default",
    max_drop: Words | Drop = None,
    target_size: str | float | Goal | None = None,
    target_latency: str | float | Goal | None = None,
    time_budget: Words = None,
    metric: str = "auto",
    outputs: Mapping[str, str] | None = None,
    exclude: str | Iterable[str] = (),
    ep: str | Target = "cpu",
    threads: int | None = None,
    target_cpu: str | None = None,
    min_ort: str | tuple[int, int] | None = None,
    custom_ops: PathLike | Iterable[PathLike] = (),
    sequence_axis: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    reference: Source | None = None,
    train_data: Any = None,
    train_time: Words = None,
    engine: str | None = None,
    checkpoints: PathLike | None = None,
    seed: int = 0,
    jobs: int | None = None,
    cluster: str | None = None,
    measure: bool = True,
    progress: Progress = api.silent,
    budget: Budget | None = None,
    target: str | Target | None = None,
    training: TrainingOptions | None = None,
) -> Result:
    """Make a model smaller or faster within an accuracy budget, verified against the original on the target.

    model: a path, bytes, an onnx.ModelProto, a Model or a Result; never changed. calibration: inputs to calibrate and
    verify with: arrays by input name (``labels`` too), an array for a single input, an iterable or a function giving
    feeds, a path (.npz, .npy, folder), ``"module:function"``, Sequences or CalibrationData; None draws them at
    random, which shows breakage only. recipe: a preset, a TOML file, a Recipe or one pass.
    max_drop: ``"1%"``, ``0.01``, ``"30dB"``. target_size: ``"4x"``, ``"25%"``, ``"5MB"``, bytes. target_latency:
    ``"0.5x"``, ``"5ms"``. time_budget: ``"10m"``, seconds. outputs: what an output is, such as
    ``{"logits": "classes"}``. exclude: names or patterns of weights and nodes to leave alone.
    ep, threads, target_cpu, min_ort, custom_ops: where the result must run. sequence_axis: that of the steps.
    input_shapes: ``{"images": (1, 3, 320, 320)}``, sizes that the model leaves open, for random inputs and latencies.
    reference: the model to hold the result against. train_data, train_time, engine, checkpoints: of what trains.
    measure: whether to time the result. progress: called with (done, total, what).
    budget, target, training: the same as objects, in place of their keywords.
    Raises OnnxcompError, in one line; the result is in memory until ``save``.
    """
    where = a_target(
        ep if target is None else target, threads=threads, target_cpu=target_cpu, min_ort=min_ort, custom_ops=custom_ops
    )
    limits = a_budget(
        budget, max_drop=max_drop, target_size=target_size, target_latency=target_latency, time_budget=time_budget
    )
    return api.optimize(
        a_model(model),
        recipe=a_recipe(recipe),
        calibration=calibration_of(calibration, sequence_axis),
        target=where,
        budget=limits,
        metric=a_metric(metric),
        outputs=readings_of(outputs),
        exclude=names_of("exclude", exclude),
        reference=None if reference is None else a_model(reference, "reference"),
        input_shapes=shapes_of(input_shapes),
        training=training or _training(train_data, train_time, engine, checkpoints),
        seed=a_whole_number("seed", seed, least=0),
        measure=measure,
        jobs=None if jobs is None else a_whole_number("jobs", jobs, least=1),
        cluster=cluster,
        progress=progress,
    )


def run(
    rewrite: str | Pass,
    model: Source,
    calibration: Any = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    **options: Unpack[Options],
) -> Result:
    """Apply one pass, checked, verified, and taken back where it breaks the budget.

    rewrite: a pass or its name, such as ``"prune-weights"`` (``onnxcomp passes`` lists them). parameters: its own, such
    as ``{"sparsity": 0.5}``; a strength may be ``"auto"``. calibration and options: as for ``optimize``.
    Raises OnnxcompError.
    """
    return optimize(model, calibration, recipe=a_single_pass(rewrite, parameters), **options)


def distill(
    teacher: Source,
    student: Source | None = None,
    *,
    shape: str | StudentShape | None = None,
    epochs: float | None = None,
    mixup: float = 0.0,
    calibration: Any = None,
    **options: Unpack[Options],
) -> Result:
    """Train a student to give what the teacher does, without labels.

    student: a model whose outputs have the teacher's names; or shape: which to make of the teacher, such as
    ``"width=0.5,depth=0.75,separable"``. epochs: times through the samples. mixup: samples are mixed in
    shares of Beta(mixup, mixup), 0 for none. calibration, options: as for ``optimize`` (``train_data``, ``train_time``,
    ``engine``, ...). Without max_drop the student is given however far it is from its
    teacher. Raises OnnxcompError.
    """
    if (student is None) == (shape is None):
        raise ParameterError("student: give a model, or shape= to make one of the teacher: one of both")
    made = shape if isinstance(shape, StudentShape) else StudentShape.parse(shape or "")
    known = {} if epochs is None else {"epochs": float(epochs)}
    recipe = distilling(made, mixup=float(mixup), **known)
    a_model(teacher, "teacher")
    if student is not None:
        options["reference"] = teacher
    if options.get("budget") is None:
        options.setdefault("max_drop", NO_LIMIT)
    return optimize(teacher if student is None else student, calibration, recipe=recipe, **options)


def _training(data: Any, time: Words, engine: str | None, checkpoints: PathLike | None) -> TrainingOptions | None:
    """What was said of trainings; None where nothing was."""
    if data is None and time is None and engine is None and checkpoints is None:
        return None
    folder = None if checkpoints is None else Path(checkpoints)
    return TrainingOptions(data, engine or AUTO, in_words("train_time", time), folder)
