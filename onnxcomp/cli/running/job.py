"""What ``optimize`` and ``run`` share: refuse early, run the pipeline, write, say what happened."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from onnxcomp.budget import Budget
from onnxcomp.calibration import Sequences
from onnxcomp.calibration.data.sources import module_file, source_files
from onnxcomp.cli import GIVEN
from onnxcomp.cli.printing import receipts, screen
from onnxcomp.cli.printing.phases import Phases
from onnxcomp.cli.running.options import default_output
from onnxcomp.files import Inputs
from onnxcomp.graph.report.inspection import has_something_to_compress
from onnxcomp.model import Model, load, refuse_outputs
from onnxcomp.pipeline import Result, optimize, replay
from onnxcomp.pipeline.reports.plan import plan
from onnxcomp.pipeline.training_data import TrainingOptions
from onnxcomp.receipt import Receipt
from onnxcomp.recipe import Recipe
from onnxcomp.target import Target

GOAL_MISSED = 3
NO_CONSTANTS = "there are no weights to compress: it has no constants to speak of. Only its graph may become smaller."


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of one run, as given."""

    model: Path
    recipe: str | Recipe
    output: Path | None
    force: bool
    report: Path | None
    dry_run: bool
    calib_data: str | Sequences | None
    reference: Path | None
    train_data: str | None
    train_time: str | None
    engine: str
    checkpoints: Path | None
    seed: int
    ep: str
    threads: int
    target_cpu: str | None
    custom_ops: tuple[Path, ...]
    input_shapes: dict[str, tuple[int, ...]]
    max_drop: str | None
    metric: str
    outputs: tuple[tuple[str, str], ...]
    target_size: str | None
    target_latency: str | None
    time_budget: str | None
    exclude: tuple[str, ...]
    min_ort: tuple[int, int] | None
    jobs: int | None
    cluster: str | None
    as_json: bool
    quiet: bool
    verbose: bool
    replay: Path | None = None

    @property
    def target(self) -> Target:
        """Where the result must run."""
        return Target.of(
            self.ep,
            threads=self.threads,
            cpu=self.target_cpu,
            custom_ops=self.custom_ops,
            min_ort=self.min_ort,
        )

    @property
    def training(self) -> TrainingOptions:
        """What trainings go by."""
        return TrainingOptions(self.train_data, self.engine, self.train_time, self.checkpoints)

    @property
    def budget(self) -> Budget:
        """What the run may cost and must reach."""
        return Budget.parse(
            max_drop=self.max_drop,
            target_size=self.target_size,
            target_latency=self.target_latency,
            time_budget=self.time_budget,
        )


def run(request: Request) -> None:
    """Do what was asked for; ends with exit code 3 where a goal was missed."""
    context = click.get_current_context()
    started = context.find_root().obj  # when the command began, None where it is no process
    model = load(request.model)
    output = request.output or default_output(request.model)
    if not request.dry_run:
        _refuse_outputs(request, model, output)
    if request.dry_run:
        _show_plan(request, model)
        return
    remark = None if request.quiet or has_something_to_compress(model) else f"{model.name}: {NO_CONSTANTS}"
    with screen.progress(quiet=request.quiet, words=_phases(request)) as tell:
        tell = tell if remark is None else _remarking(tell, remark)
        result = _result(request, model, tell, started)
        if request.replay is None:
            result.receipt.command = shlex.join(["onnxcomp", *context.meta.get(GIVEN, ())])
        written = result.save(output, force=request.force)
        written += [result.report(path, force=request.force) for path in _reports(request)]
    _show(request, result.receipt, written)
    if result.receipt.missed:
        if request.quiet or request.as_json:  # a table says it in its place
            screen.remark(f"onnxcomp: goal missed: {'; '.join(result.receipt.missed)} (exit code {GOAL_MISSED})")
        context.exit(GOAL_MISSED)


def _phases(request: Request) -> Callable[[str], str]:
    """What the run says that it does, with the phase of the recipe that it is."""
    if request.replay is not None:
        return str
    recipe = request.recipe if isinstance(request.recipe, Recipe) else Recipe.load(request.recipe)
    return Phases.of(recipe).told


def _remarking(tell: screen.Tell, remark: str) -> screen.Tell:
    """Say something once the original has run: where it does not, one line says why, and no other."""
    told = itertools.count()

    def telling(done: int, total: int, what: str) -> None:
        if next(told) == 1:
            screen.remark(remark)
        tell(done, total, what)

    return telling


def _refuse_outputs(request: Request, model: Model, output: Path) -> None:
    """Refuse what cannot be written before anything is computed."""
    data = request.calib_data.source if isinstance(request.calib_data, Sequences) else request.calib_data
    for source in (data, request.train_data):
        if source is not None:  # here it is always a name
            model.inputs.update(Inputs(source_files(str(source))))
    named = (data or "", request.train_data or "", request.metric)
    modules = [module_file(each) for each in map(str, named) if ":" in each]
    recipe = [Path(request.recipe)] if isinstance(request.recipe, str) else []
    for path in (*modules, *recipe, request.replay, request.reference, *request.custom_ops):
        if path is not None:
            model.inputs.add(path, read_once=True)
    outputs = [output, Result.account_path(output), *_reports(request)]
    refuse_outputs(model, outputs, force=request.force)


def _reports(request: Request) -> list[Path]:
    return [] if request.report is None else [request.report]


def _result(request: Request, model: Model, tell: screen.Tell, started: float | None) -> Result:
    if request.replay is not None:
        receipt = Receipt.read(request.replay)
        options: dict[str, Any] = {"calibration": request.calib_data, "custom_ops": request.custom_ops}
        options |= {"reference": request.reference, "training": request.training}
        return replay(model, receipt, progress=tell, **options)
    return optimize(
        model,
        recipe=request.recipe,
        calibration=request.calib_data,
        target=request.target,
        budget=request.budget,
        metric=request.metric,
        outputs=dict(request.outputs),
        exclude=request.exclude,
        reference=request.reference,
        training=request.training,
        input_shapes=request.input_shapes,
        seed=request.seed,
        jobs=request.jobs,
        cluster=request.cluster,
        progress=tell,
        started=started,
    )


def _show_plan(request: Request, model: Model) -> None:
    planned = plan(
        model,
        recipe=request.recipe,
        calibration=request.calib_data,
        target=request.target,
        exclude=request.exclude,
        input_shapes=request.input_shapes,
        seed=request.seed,
    )
    if request.as_json:
        screen.show_json(dataclasses.asdict(planned))
    elif not request.quiet:
        receipts.show_plan(planned, verbose=request.verbose)


def _show(request: Request, receipt: Receipt, written: list[Path]) -> None:
    if request.as_json:
        content: dict[str, Any] = {"files": [str(path) for path in written], **receipt.content()}
        screen.show_json(content)
    elif not request.quiet:
        receipts.show(receipt, written, verbose=request.verbose, replayed=request.replay is not None)
