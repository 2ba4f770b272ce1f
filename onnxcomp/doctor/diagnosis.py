"""The whole account: the machine, the faults of its ONNX Runtime, and of a model what takes time and what mends it.

A mend is advised by what it was measured to do: the passes are applied in memory, and all forms take turns with the
model as it is.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxcomp import formats
from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Pass
from onnxcomp.doctor.causes import Cause, causes_of
from onnxcomp.doctor.examination import (
    LARGEST_TRIED_BYTES,
    Examination,
    latencies,
    treated,
    with_sizes,
)
from onnxcomp.doctor.faults import FoundFault, faults_here
from onnxcomp.doctor.machine import Machine, this_machine, threads_in_words
from onnxcomp.errors import OnnxcompError
from onnxcomp.graph.infer.shapes import is_open
from onnxcomp.model import Model, load
from onnxcomp.pipeline.api import silent
from onnxcomp.pipeline.opening import open_data
from onnxcomp.pipeline.reports.roofline import OperatorShare, operator_shares
from onnxcomp.pipeline.run import Progress
from onnxcomp.runtime import IntegerGain, Latency, MachinePeaks, measure_gains, measure_peaks
from onnxcomp.shown import Row, Shown
from onnxcomp.target import Target

GAINS = 0.95  # a mend has to leave no more of the time than this, measured twice
AS_IT_IS, SIZED = "as it is", "sizes fixed"
FAULT = "known fault"
FIXING = "python -m onnxruntime.tools.make_dynamic_shape_fixed"


@dataclass(frozen=True)
class Finding:
    """Something about a model that takes time.

    share: of a run, 0 where that cannot be said. command: what mends it, "" where nothing here does. ratio: of
    latencies with and without the mend, as measured now; None where it was not.
    """

    name: str
    what: str
    share: float
    command: str
    ratio: float | None
    advice: str = ""


@dataclass(frozen=True)
class ModelDiagnosis:
    """A model on a target: latency of one run on one sample of these shapes, where it goes, and what can be done."""

    name: str
    size_bytes: int
    latency_ms: float
    data: str
    shapes: dict[str, tuple[int, ...]]
    operators: tuple[OperatorShare, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Diagnosis(Shown):
    """The machine and, where one was given, the model on it.

    gains: what 8-bit integers gain here. peaks: the most that the machine does on one thread; all_threads: on all
    cores, None where there is but one. faults: of the ONNX Runtime that is installed.
    """

    machine: Machine
    target: str
    gains: tuple[IntegerGain, ...]
    peaks: MachinePeaks
    all_threads: MachinePeaks | None
    faults: tuple[FoundFault, ...]
    model: ModelDiagnosis | None = None

    def headline(self) -> str:
        """The processor, and how many findings there are."""
        where = f"{self.machine.processor}, ONNX Runtime {self.machine.versions['onnxruntime']}"
        if self.model is None:
            return where
        return f"{self.model.name} on {where}: {formats.count(len(self.model.findings), 'finding')}"

    def rows(self) -> list[Row]:
        """Facts about the machine, its faults, then the findings with their commands."""
        if self.model is None:
            return machine_rows(self)
        found = [row for row in machine_rows(self) if row[0] != FAULT]
        found.append((f"{FAULT}s", f"{len(self.faults)} of this ONNX Runtime: see `faults`"))
        return [*found, *((each.name, said(each)) for each in self.model.findings)]


def diagnose(
    model: Any = None,
    *,
    data: Any = None,
    target: str | Target = "cpu",
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Diagnosis:
    """Look at the machine and its ONNX Runtime, and at why a model is slow on them.

    model: as for ``optimize``; None for the machine alone. data: where the sample comes from that it runs on, as for
    ``compare``; input_shapes: of one that is drawn. Raises OnnxcompError for a model that does not load or run.
    """
    where = target if isinstance(target, Target) else Target.of(target)
    given = None if model is None else load(model)
    progress(0, 1, "measuring what the machine does at best")
    machine = this_machine()
    gains, peaks = measure_gains(), measure_peaks()
    all_threads = measure_peaks(threads=machine.usable_cores) if machine.usable_cores > 1 else None
    progress(0, 1, "trying known faults of ONNX Runtime")
    faults = tuple(faults_here())
    seen = None
    if given is not None:
        progress(0, 1, "running the model")
        opened = open_data(given, data, where, seed, input_shapes)
        seen = _of_model(given, opened, where, gains, peaks, progress)
    return Diagnosis(machine, where.name, tuple(gains), peaks, all_threads, faults, seen)


def _of_model(
    model: Model,
    data: CalibrationData,
    target: Target,
    gains: Sequence[IntegerGain],
    peaks: MachinePeaks,
    progress: Progress,
) -> ModelDiagnosis:
    seen = Examination.of(model, target, data)
    causes = causes_of(seen, gains)
    progress(0, 1, "trying what may mend it")
    forms, notes = _forms(seen, causes)
    now, ratios = _measured(forms, seen)
    best = {each.name: _best(each, ratios) for each in causes}
    found = [_finding(each, model, best[each.name]) for each in causes if _is_worth(each, best[each.name])]
    guesses = {each.name for each in causes if each.is_guess}
    known = {each.command for each in found if each.name not in guesses}
    found = [each for each in found if each.name not in guesses or each.command not in known]
    found += _of_sizes(seen, ratios.get(SIZED))
    shares = operator_shares(seen.kernels, peaks if target.name == "cpu" and target.threads == 1 else None)
    shapes = {name: value.shape for name, value in seen.feeds.items() if hasattr(value, "shape")}
    return ModelDiagnosis(model.name, model.size_bytes, now, data.source, shapes, shares, tuple(found), tuple(notes))


def _forms(seen: Examination, causes: Sequence[Cause]) -> tuple[dict[str, Model], list[str]]:
    """The model as it is and after each mend, by name; and what could not be made."""
    forms, notes = {AS_IT_IS: seen.model}, []
    if seen.model.size_bytes > LARGEST_TRIED_BYTES:
        return forms, [f"the model is over {formats.size(LARGEST_TRIED_BYTES)}: nothing that may mend it was tried"]
    done: dict[tuple[Pass, ...], Model | None] = {}
    for cause, way, name in ((each, way, _form(each, index)) for each in causes for index, way in enumerate(each.ways)):
        if way not in done:
            try:
                made = treated(seen, way)
                done[way] = made if made is None or _runs(made, seen) else None
            except OnnxcompError as error:
                notes.append(f"{cause.name}: {error}")
                done[way] = None
        found = done[way]
        if found is not None:
            forms[name] = found
    sized = with_sizes(seen.model.proto, seen.feeds)
    if sized is not None:
        fixed = seen.model.with_proto(sized)
        if _runs(fixed, seen):
            forms[SIZED] = fixed
    return forms, notes


def _measured(forms: dict[str, Model], seen: Examination) -> tuple[float, dict[str, float]]:
    """Milliseconds of the model as it is, and the other forms' ratios to it. What seems to gain is measured once more,
    and what is less of a gain counts: the best of several is the luckiest, too."""
    took = latencies(forms, seen.target, seen.feeds)
    ratios = _ratios(took)
    gaining = {name: forms[name] for name, ratio in ratios.items() if ratio <= GAINS or name == AS_IT_IS}
    if len(gaining) > 1:
        again = _ratios(latencies(gaining, seen.target, seen.feeds))
        ratios |= {name: max(ratios[name], ratio) for name, ratio in again.items()}
    return took[AS_IT_IS].median_ms, ratios


def _ratios(took: Mapping[str, Latency]) -> dict[str, float]:
    """Of latencies to those of the model as it is: by median or best run, whichever gains less, since other work on the
    machine falls on either."""
    plain = took[AS_IT_IS]
    return {name: max(each.median_ms / plain.median_ms, each.best_ms / plain.best_ms) for name, each in took.items()}


def _runs(model: Model, seen: Examination) -> bool:
    try:
        with model.opened_on(seen.target.session) as session:
            session.run(seen.feeds)
    except OnnxcompError:
        return False
    return True


def _form(cause: Cause, index: int) -> str:
    return f"{cause.name} {index}"


def _best(cause: Cause, ratios: dict[str, float]) -> float | None:
    """The least ratio of all ways to mend it; None where none was measured."""
    return min((ratios[name] for i in range(len(cause.ways)) if (name := _form(cause, i)) in ratios), default=None)


def _is_worth(cause: Cause, ratio: float | None) -> bool:
    """What is but a guess is worth saying where acting on it gains."""
    return not cause.is_guess or (ratio is not None and ratio <= GAINS)


def _finding(cause: Cause, model: Model, ratio: float | None) -> Finding:
    """The cause with its command, where that was measured to help or could not be measured."""
    helps = ratio is not None and ratio <= GAINS
    command, advice = (cause.command if helps else ""), cause.advice
    if not helps and cause.ways:
        said = "changes nothing here" if ratio is None else f"gains nothing here (latency ratio {ratio:.2f})"
        advice = "; ".join(filter(None, [f"`onnxcomp {cause.command}` was tried and {said}", advice]))
    name = "MODEL" if model.path is None else shlex.quote(str(model.path))
    return Finding(
        cause.name,
        cause.what,
        cause.share,
        _command(command, name),
        ratio,
        advice.replace("MODEL", name),
    )


def _command(words: str, name: str) -> str:
    """``run raise-float16`` -> ``onnxcomp run raise-float16 net.onnx``; options come last."""
    if not words:
        return ""
    front, _, options = words.partition(" --")
    return " ".join(filter(None, ["onnxcomp", front, name, f"--{options}" if options else ""]))


def _of_sizes(seen: Examination, ratio: float | None) -> list[Finding]:
    """Dimensions left open that keep ONNX Runtime from what it does with known ones."""
    if ratio is None or ratio > GAINS:
        return []
    name = "MODEL" if seen.model.path is None else shlex.quote(str(seen.model.path))
    fixed = "fixed.onnx"
    steps = []
    for info in seen.model.proto.graph.input:
        shape = getattr(seen.feeds.get(info.name), "shape", None)
        if shape is not None and any(is_open(each) for each in info.type.tensor_type.shape.dim):
            sizes = ",".join(map(str, shape))
            steps.append(f"{FIXING} --input_name {shlex.quote(info.name)} --input_shape {sizes} {name} {fixed}")
            name = fixed
    return [
        Finding(
            "open dimensions",
            "with the sizes of this sample for those that the model leaves open, ONNX Runtime fuses more",
            0.0,
            " && ".join(steps),
            ratio,
            "only where inputs always have these sizes",
        )
    ]


def said(finding: Finding) -> str:
    """A finding in one line: what it costs, what mends it and what that gains."""
    cost = f"{finding.share:.0%} of the time: " if finding.share else ""
    gain = "" if finding.ratio is None or not finding.command else f" (measured: {finding.ratio:.2f} of the latency)"
    mend = f". Mend: {finding.command}{gain}" if finding.command else ""
    return f"{cost}{finding.what}{mend}{f'. {finding.advice}' if finding.advice else ''}"


def machine_rows(found: Diagnosis) -> list[Row]:
    """What the machine has, in words."""
    machine, peaks = found.machine, found.peaks
    saturating = ", sums of 8-bit products saturate" if machine.saturates else ""
    gained = ", ".join(
        f"{each.operator} {each.times_faster:.1f}x ({1e3 * each.float32_s:.2f} -> {1e3 * each.int8_s:.2f} ms)"
        for each in found.gains
    )
    rate = f"{peaks.float32_macs / 1e9:.0f} GMAC/s in float32, {peaks.int8_macs / 1e9:.0f} in int8"
    rows: list[Row] = [
        ("processor", f"{machine.processor}, {machine.system}"),
        ("taken for", f"{machine.kind}{saturating} (--target-cpu)"),
        ("features", " ".join(machine.features)),
        ("cores", threads_in_words(machine)),
        ("memory", f"{formats.size(machine.memory_free_bytes)} of {formats.size(machine.memory_bytes)} free"),
        ("one thread", f"{rate}, {peaks.bytes_moved[-1][1] / 1e9:.0f} GB/s of memory"),
    ]
    if found.all_threads is not None:
        times = found.all_threads.float32_macs / peaks.float32_macs
        rows.append((formats.count(machine.usable_cores, "thread"), f"{times:.2f} times that of one (measured)"))
    rows += [
        ("int8 gains", gained),
        ("providers", ", ".join(machine.providers)),
        ("loads", f"opset {machine.highest_opset}, IR {machine.highest_ir}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())),
    ]
    if len(machine.runtimes) > 1:
        rows.append(("conflict", f"{' and '.join(machine.runtimes)} overwrite each other: uninstall all but one"))
    rows += [(FAULT, f"{each.name}: {each.what}. Around it: {each.around}") for each in found.faults]
    return rows
