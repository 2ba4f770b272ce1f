"""Make a receipt's result again, byte for byte, and say so only where it is the same."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from onnxcomp.budget import Drop
from onnxcomp.calibration import CalibrationData, Sequences
from onnxcomp.contract import Context, Outcome, Pass, is_composed
from onnxcomp.errors import CalibrationError, ModelError, RecipeError
from onnxcomp.graph.ir.seeds import seeded, unseeded
from onnxcomp.graph.weights.roles import compose, with_true_encodings
from onnxcomp.model import Model, load
from onnxcomp.parallel import cores
from onnxcomp.pipeline.api import silent, tuner_for
from onnxcomp.pipeline.apply import apply_choice, put_back
from onnxcomp.pipeline.before import described_reference, opened_reference
from onnxcomp.pipeline.history.digests import data_digest, result_digest, source_digest
from onnxcomp.pipeline.history.lineage import Lineage
from onnxcomp.pipeline.history.records import pass_again
from onnxcomp.pipeline.opening import open_data
from onnxcomp.pipeline.result import Result
from onnxcomp.pipeline.run import Progress
from onnxcomp.pipeline.scratch_need import REWRITTEN
from onnxcomp.pipeline.training_data import TrainingOptions, refuse_other_samples
from onnxcomp.pipeline.weight_search.driver import fitting_part
from onnxcomp.receipt import Application, Receipt
from onnxcomp.registry import get_pass
from onnxcomp.room import room_told
from onnxcomp.target import Target
from onnxcomp.training.engines import AUTO
from onnxcomp.training.setup import TrainingSetup
from onnxcomp.verify import Verifier


def replay(
    source: str | os.PathLike[str] | onnx.ModelProto | Model,
    receipt: Receipt,
    *,
    calibration: str | os.PathLike[str] | Sequences | CalibrationData | None = None,
    reference: str | os.PathLike[str] | onnx.ModelProto | Model | None = None,
    training: TrainingOptions | None = None,
    custom_ops: tuple[Path, ...] = (),
    progress: Progress = silent,
) -> Result:
    """Make the receipt's result again, byte for byte, measuring only what a pass itself goes by.

    Raises ModelError when the model is another one or what comes out is, RecipeError when a pass needs the calibration
    data, CalibrationError when these are others than the receipt's.
    """
    model = load(source)
    known = str(receipt.source.get("sha256"))
    if known != source_digest(model):
        raise ModelError(f"{model.name}: the receipt belongs to another model (sha256 {known[:12]}...).")
    model = with_true_encodings(seeded(model)).for_a_run()
    target = Target.of(receipt.target, cpu=receipt.target_cpu or None, min_ort=_min_ort(receipt), custom_ops=custom_ops)
    if calibration is None and training is not None and training.data is not None:
        calibration, training = training.data, dataclasses.replace(training, data=None)
    before = _before(model, reference, receipt)
    data = None if calibration is None else _data(model, calibration, target, receipt)
    setup = _setup(model, training, target, receipt)
    context = Context(
        seed=receipt.seed,
        target=target,
        calibration=data,
        divergence=None if data is None else _divergence(before or model, data, receipt, target),
        progress=progress,
        max_opset=target.supported_opset,
        outputs=receipt.metric.get("asked") or {},
        training=setup,
        jobs=cores(),
    )
    with room_told(model.scratch.folder, REWRITTEN * model.size_bytes):
        result = unseeded(_applied(model, before, receipt, context))
        _check(result, receipt)
    return Result(result, dataclasses.replace(receipt, missed=[]))


def _min_ort(receipt: Receipt) -> tuple[int, int] | None:
    if not receipt.min_ort:
        return None
    major, minor = receipt.min_ort.split(".")
    return int(major), int(minor)


def _data(model: Model, source: Any, target: Target, receipt: Receipt) -> CalibrationData | None:
    """The calibration part of the data; None where the receipt's run drew on none of it."""
    data = open_data(model, source, target, receipt.seed)
    model.inputs.update(data.files)
    known = receipt.data.get("sha256")
    if known is not None and known != data_digest(data):
        raise CalibrationError(
            f"{data.source}: the receipt was made with other calibration data (sha256 {str(known)[:12]}...)."
        )
    return data.split(seed=receipt.seed)[0]


def _check(result: Model, receipt: Receipt) -> None:
    """Raise ModelError where the result is not the receipt's."""
    made, known = result_digest(result), receipt.result.get("sha256")
    if made is None or made == known:
        return
    if known is None:
        raise ModelError("the receipt does not say what its result is (sha256): nothing can be compared.")
    raise ModelError(
        f"replaying gives another model (sha256 {made[:12]}...) than the receipt's ({str(known)[:12]}...). "
        f"It was made with {', '.join(f'{name} {version}' for name, version in receipt.versions.items())}."
    )


def _before(model: Model, source: Any, receipt: Receipt) -> Model | None:
    """The model that the run was held against, where that is not its own."""
    known = receipt.reference.get("sha256")
    if known is None:
        return None
    if source is None:
        raise RecipeError("replaying needs the model that the run was held against. Give it with --reference.")
    if described_reference(source)["sha256"] != known:
        raise ModelError(f"{source}: the receipt was made with another reference (sha256 {str(known)[:12]}...).")
    return opened_reference(source, model)


def _setup(model: Model, training: TrainingOptions | None, target: Target, receipt: Receipt) -> TrainingSetup | None:
    """What trainings go by: the engine is that of the receipt."""
    setup = None if training is None else training.opened(model, target, receipt.seed)
    refuse_other_samples(setup, receipt.training)
    if not receipt.training:
        return setup
    return dataclasses.replace(setup or TrainingSetup(), engine=str(receipt.training.get("engine", AUTO)))


def _applied(model: Model, original: Model | None, receipt: Receipt, context: Context) -> Model:
    """The model after all applications of the receipt."""
    data = context.calibration
    fit = None if data is None else fitting_part(data, receipt.seed)[0]
    line = before = Lineage.of(model, original)
    for application in receipt.applied:
        rewrite = pass_again(get_pass(application.rewrite), application)
        if application.on_data and data is None:
            name = application.rewrite
            raise RecipeError(f"{name}: replaying needs the calibration data. Give it with --calib-data.")
        if not application.beside:
            before = line
        part = (fit if application.fitted else data) if application.on_data else None
        given = before.context(dataclasses.replace(context, calibration=part))
        swapped = application.beside and is_composed(rewrite)
        after, outcome = _apply_again((before if swapped else line).current, rewrite, application, given)
        if swapped:
            after = compose(line.current, dict.fromkeys(application.choice or (), after))
        line = line.after(rewrite, after, outcome)
    return line.current


def _apply_again(current: Model, rewrite: Pass, application: Application, context: Context) -> tuple[Model, Outcome]:
    context = dataclasses.replace(context, exclude=tuple(application.exclude))
    after, outcome = apply_choice(current, rewrite, application.choice, context)
    if application.restore:
        after = put_back(after, current, application.restore, [each.name for each in outcome.changed])
    return after, outcome


def _divergence(model: Model, tuning: CalibrationData, receipt: Receipt, target: Target) -> Callable[[Model], float]:
    """What passes went by when the receipt was written; the original runs when it is first asked for."""

    @functools.cache
    def tuner() -> Verifier:
        metric = str(receipt.metric["name"])
        drop = Drop(float(receipt.metric["limit"]))
        options: dict[str, Any] = {"target": target, "metric": metric, "max_drop": drop, "seed": receipt.seed}
        options["outputs"] = receipt.metric.get("asked") or {}
        return tuner_for(model, tuning, metric, options)

    return lambda candidate: tuner().check(candidate).quadratic_divergence
