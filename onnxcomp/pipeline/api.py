"""The way into the pipeline: optimize a model by a recipe. To repeat what a receipt says: ``replaying``."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import onnx

from onnxcomp import formats
from onnxcomp.budget import Budget
from onnxcomp.calibration import CalibrationData, Sequences
from onnxcomp.clock import clock
from onnxcomp.cluster import on_cluster
from onnxcomp.contract import Context
from onnxcomp.errors import CalibrationError, ModelError, VerificationError
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.ir.seeds import is_drawing, seeded, unseeded
from onnxcomp.graph.report.inspection import contributed_operators
from onnxcomp.graph.weights.roles import with_true_encodings
from onnxcomp.memory import uncollected
from onnxcomp.model import Model, load
from onnxcomp.parallel import cores
from onnxcomp.pipeline.before import allow_present, described_reference, opened_reference
from onnxcomp.pipeline.costs import compare_costs
from onnxcomp.pipeline.executor import execute, settle
from onnxcomp.pipeline.history.accounts import describe
from onnxcomp.pipeline.history.digests import data_digest, result_digest, source_digest
from onnxcomp.pipeline.history.lineage import Lineage
from onnxcomp.pipeline.opening import open_data
from onnxcomp.pipeline.result import Result
from onnxcomp.pipeline.run import Progress, Run
from onnxcomp.pipeline.safety.exact_samples import enough_for_exact
from onnxcomp.pipeline.safety.exclusions import refuse_idle, with_stored
from onnxcomp.pipeline.safety.grounds import Grounds
from onnxcomp.pipeline.safety.reach import Reach
from onnxcomp.pipeline.scratch_need import scratch_bytes
from onnxcomp.pipeline.time_budget import TimeBudget
from onnxcomp.pipeline.training_data import TrainingOptions, described
from onnxcomp.receipt import Receipt
from onnxcomp.recipe import Recipe
from onnxcomp.room import refuse_lack, room_told
from onnxcomp.runtime import installed_release
from onnxcomp.target import Target, oldest_ort, supported
from onnxcomp.target.machine import machine
from onnxcomp.verify import Verifier
from onnxcomp.verify.candidate import ISOLATE_FROM_BYTES
from onnxcomp.verify.repeatable import draws_differently

LOG = logging.getLogger(__name__)

TUNED_VALUES = 15 * 10**8  # samples of the search times weight values, at most
LEAST_TUNING_SAMPLES = 16
PACKAGES = ("onnxcomp", "onnx", "numpy", "scikit-learn")


def silent(done: int, total: int, what: str) -> None:
    """Tell nobody."""


def optimize(
    source: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    recipe: str | os.PathLike[str] | Recipe = "default",
    calibration: str | os.PathLike[str] | Sequences | CalibrationData | None = None,
    target: str | Target = "cpu",
    budget: Budget | None = None,
    metric: str = "auto",
    outputs: Mapping[str, str] | None = None,
    exclude: Sequence[str] = (),
    reference: str | os.PathLike[str] | onnx.ModelProto | Model | None = None,
    training: TrainingOptions | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    measure: bool = True,
    jobs: int | None = None,
    cluster: str | None = None,
    progress: Progress = silent,
    started: float | None = None,
) -> Result:
    """Make a model smaller or faster within the accuracy budget, verified on the target.

    source: a path, a ModelProto or a Model; never changed. recipe: a preset, a TOML file or a Recipe.
    calibration: input data (see ``CalibrationData.open``; ``Sequences`` where the arrays have an axis of steps), None
    for none. outputs: what outputs are by the user's word, by name (see ``Verifier``). exclude: patterns of weight and
    node names to leave alone. reference: the model to hold the result against, where the source was made of it in an
    earlier run. training: samples, engine and time of what trains. input_shapes: input -> sizes that random inputs are
    drawn in and latencies measured at. measure: whether to time the result at the end.
    started: when the time budget began, on the clock of ``time.monotonic``; now by default. jobs: tasks worked on at
    once, None for one a core; the result is the same for any number. cluster: a Dask scheduler's address, or "local".
    Raises OnnxcompError with a one-line message; nothing is written.
    """
    started = clock() if started is None else started
    if calibration is None and training is not None and training.data is not None:
        calibration, training = training.data, dataclasses.replace(training, data=None)
    model = with_true_encodings(seeded(load(source))).for_a_run()
    chosen = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    chosen.check_needs(calibration=calibration is not None)
    where = target if isinstance(target, Target) else Target.of(target)
    _refuse_newer(model, where)
    limits = budget or Budget()
    refuse_idle(model, exclude)
    patterns = with_stored(model, exclude)
    needed = scratch_bytes(model, chosen)
    refuse_lack(f"{model.name}: the recipe {chosen.name}", needed)
    with room_told(model.scratch.folder, needed), on_cluster(cluster, jobs or cores()):
        time = TimeBudget(started, limits.time_budget_s or math.inf, is_measured=measure)
        with _opened_once(model), uncollected():
            before = opened_reference(reference, model)
            shapes = input_shapes or {}
            run = _prepare(
                model, before, chosen, calibration, where, limits, metric, outputs, patterns, shapes, seed, progress,
                time,
            )  # fmt: skip
        LOG.info("%s: recipe %s on %s, %d samples, limit %.3g", model.name, chosen.name, where.name, *_judged(run))
        setup = None if training is None else training.opened(model, where, seed)
        run.context = dataclasses.replace(run.context, jobs=jobs or cores(), training=setup)
        run.receipt.training, run.receipt.reference = described(setup), described_reference(reference)
        execute(run)
        _finish(run)
    return Result(unseeded(run.current), run.receipt)


def _judged(run: Run) -> tuple[int, float]:
    """On how many samples the result is judged, and by what limit."""
    return int(run.receipt.data["verification_samples"]), run.verifier.limit


def _opened_once(model: Model) -> contextlib.AbstractContextManager[None]:
    """While the original is read: not of a model that draws, which each session begins anew, nor of one that is
    verified in a process of its own."""
    is_plain = not is_drawing(model) and model.size_bytes < ISOLATE_FROM_BYTES
    return model.kept_open() if is_plain else contextlib.nullcontext()


def _refuse_newer(model: Model, target: Target) -> None:
    """Raise ModelError for a model that already needs a newer ONNX Runtime than the oldest that must load it."""
    if target.min_ort is None:
        return
    opset, ir = supported(target.min_ort)
    if model.opset > opset or model.proto.ir_version > ir:
        oldest = ".".join(map(str, target.min_ort))
        raise ModelError(
            f"{model.name}: ONNX Runtime {oldest} loads opset {opset} and IR version {ir} at most; "
            f"the model has opset {model.opset} and IR version {model.proto.ir_version}."
        )


def _prepare(
    model: Model,
    before: Model | None,
    recipe: Recipe,
    calibration: Any,
    target: Target,
    budget: Budget,
    metric: str,
    outputs: Mapping[str, str] | None,
    exclude: tuple[str, ...],
    shapes: Mapping[str, Sequence[int]],
    seed: int,
    progress: Progress,
    time: TimeBudget,
) -> Run:
    """Read the data, run the original, start the receipt. before: the original, where it is not the model itself."""
    progress(0, 1, "running the original")
    with time.noting("open_s"):
        recipe, data = _recipe_and_data(model, recipe, calibration, target, seed, shapes)
    tuning, checking = (None, data) if data.is_random else data.split(seed=seed)
    has_choice = any(not step.is_exact for step in recipe.unrolled())
    if not has_choice and before is None:  # what was lost before is estimated on all samples
        checking = enough_for_exact(model, checking, metric)
    options: dict[str, Any] = {"target": target, "metric": metric, "max_drop": budget.max_drop, "seed": seed}
    options["outputs"] = dict(outputs or {})
    options["shorter_ends"] = any(each.shortens_ends() for each in recipe.passes)
    with time.noting("check_s"):
        verifier = Verifier(before or model, checking, **options)
    grounds = Grounds.of(verifier, data, recipe)
    if not grounds.is_enough:
        recipe, tuning = recipe.without_calibration(), None
        verifier = grounds.for_breakage(verifier, recipe, options)
    if before is not None:
        allow_present(verifier, model)
    tuner = tuner_for(before or model, tuning, verifier.metric, options) if tuning is not None and has_choice else None
    context = Context(
        seed=seed,
        target=target,
        calibration=tuning,
        divergence=None if tuner is None else lambda candidate: tuner.check(candidate).quadratic_divergence,
        exclude=exclude,
        progress=progress,
        max_opset=target.supported_opset,
        outputs=options["outputs"],
    )
    receipt = _receipt_begun(model, recipe, context, verifier, _describe_data(data, checking), grounds.notes)
    reach = None if data.is_random else Reach(tuner, few=grounds.are_few)
    run = Run(model, recipe, context, budget, verifier, tuner, reach, data, receipt, progress, time)
    run.ledger.line = Lineage.of(model, before)
    return run


def _receipt_begun(
    model: Model, recipe: Recipe, context: Context, verifier: Verifier, data: dict[str, Any], notes: Sequence[str]
) -> Receipt:
    """What is known before the first step. data: described; notes: beside the verifier's own."""
    target = verifier.target
    return Receipt(
        recipe=recipe.name,
        seed=context.seed,
        target=target.name,
        target_cpu=target.cpu,
        min_ort="" if target.min_ort is None else ".".join(map(str, target.min_ort)),
        versions=_versions(),
        source={"path": str(model.path or ""), "bytes": model.size_bytes, "sha256": source_digest(model)},
        data=data,
        metric=verifier.describe(),
        notes=[*verifier.notes, *notes],
        machine=machine() | {"threads": target.threads},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _versions() -> dict[str, str]:
    """What the result was made with. ONNX Runtime comes in packages of many names, so it is asked itself."""
    found = {name: metadata.version(name) for name in PACKAGES}
    return found | {"onnxruntime": installed_release(), "python": platform.python_version()}


def _recipe_and_data(
    model: Model, recipe: Recipe, calibration: Any, target: Target, seed: int, shapes: Mapping[str, Sequence[int]]
) -> tuple[Recipe, CalibrationData]:
    """The data to verify on, and the recipe; only its exact steps for a model that no random inputs fit, or that
    draws other random numbers in every form.

    The first takes arguments (axes, shapes, scales) as inputs. Both are checked and loaded at every step, but
    their outputs are compared on nothing, so nothing may be lost.
    """
    try:
        data = open_data(model, calibration, target, seed, shapes)
        model.inputs.update(data.files)
        reason = draws_differently(model, data, target)
        if reason is None:
            return recipe, data
        exact = recipe.exact_part()
        if not exact.steps:
            raise VerificationError(f"{model.name}: nothing can be verified: {reason}")
        return exact, CalibrationData.nothing(f"lossy steps are left out: {reason}")
    except CalibrationError as error:
        exact = recipe.exact_part()
        if calibration is not None or shapes or not exact.steps:
            raise
        return exact, CalibrationData.nothing(f"exact passes only: {error}")


def tuner_for(model: Model, tuning: CalibrationData, metric: str, options: dict[str, Any]) -> Verifier:
    """The verifier on the calibration part: by a divergence, since labels and scores move in jumps.

    metric: what the result is verified by. options: of that verifier.
    A search runs the model some hundred times, so a large one is run on fewer samples.
    """
    values = model.size_bytes // 4
    tuning = tuning.first(max(LEAST_TUNING_SAMPLES, TUNED_VALUES // max(1, values)))
    if metric in ("accuracy", "top1") or ":" in metric:
        options = options | {"metric": "divergence", "max_drop": None}
    return Verifier(model, tuning, **options, closed_loop=False)


def _describe_data(data: CalibrationData, checking: CalibrationData) -> dict[str, Any]:
    return {
        "source": data.source,
        "random": data.is_random,
        "samples": data.sample_count,
        "verification_samples": checking.sample_count,
        "sha256": None if data.is_random else data_digest(data),
        "axes": data.axes_in_words,
        "shapes": data.timed_shapes(),
        "shapes_from": data.shapes_from,
    }


@uncollected()
def _finish(run: Run) -> None:
    """The verdict, which is obeyed; what the result is and costs, and the goals that it missed.

    Where nothing was gained there is one model only, and nothing to measure beside it.
    """
    verdict = settle(run)
    receipt, model = run.receipt, run.current
    receipt.verdict = verdict.describe()
    if verdict.doubt and not run.data.is_random and receipt.metric["wanted_samples"] is None:
        receipt.notes.append(verdict.doubt)
    LOG.info("%s: the result %s, %d bytes", run.original.name, verdict.in_words(), model.size_bytes)
    opset, ir = model.opset, model.proto.ir_version
    oldest = oldest_ort(opset=opset, ir=ir)
    gained, named = bool(receipt.applied), run.ledger.line.named
    graph = open_graph(model)
    receipt.result = {
        "gained": gained,
        "bytes": model.size_bytes,
        "ratio": model.size_bytes / run.original.size_bytes,
        "sha256": result_digest(unseeded(model)),
        "opset": opset,
        "ir_version": ir,
        "needs_onnxruntime": None if oldest is None else ".".join(map(str, oldest)),
        "contributed_operators": list(contributed_operators(graph)),
    }
    describe(receipt, run.original, graph if named is model else open_graph(named))
    del graph  # measuring needs the room
    if run.time.is_measured and run.data.sample_count and (gained or run.budget.target_latency is not None):
        _measure(run)
    _compare_with_goals(run, run.time.spent_s)
    receipt.measured["seconds"] = run.time.spent_s


def _measure(run: Run) -> None:
    """What original and result cost beside their bytes, if there is time."""
    if not run.time.allows(run.time.measuring_s):
        run.receipt.notes.append("load time and latency were not measured: the time budget was used up")
        return
    run.progress(0, 1, "measuring load time and latency")
    costs = compare_costs(run.original, run.current, run.data, run.context.target)
    run.receipt.measured = dict(costs.figures) | {"threads": run.target.threads}
    run.receipt.notes += costs.notes
    run.receipt.graphs.milliseconds = costs.operators


def _compare_with_goals(run: Run, seconds: float) -> None:
    budget, receipt = run.budget, run.receipt
    size = run.current.size_bytes
    if budget.target_size is not None:
        goal = budget.target_size.limit(run.original.size_bytes)
        if size > goal:
            exact = f"{size:,} of {goal:,.0f} bytes"
            receipt.missed.append(f"size: {formats.size(size)}, wanted {formats.size(goal)} ({exact})")
    latency = receipt.measured.get("latency_ms_result")
    if budget.target_latency is not None and latency is not None:
        goal = budget.target_latency.limit(receipt.measured["latency_ms_original"])
        if latency > goal:
            both = formats.milliseconds(latency), formats.milliseconds(goal)
            receipt.missed.append("latency: {}, wanted {}".format(*both))
    if budget.time_budget_s is not None and seconds > budget.time_budget_s:
        receipt.missed.append(f"time: {seconds:.0f} s, wanted {budget.time_budget_s:.0f} s")
