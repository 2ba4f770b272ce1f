"""A receipt, and a plan, as tables that a first reader understands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onnxcomp import formats
from onnxcomp.cli.printing import screen, steps, summary
from onnxcomp.cli.printing.steps import plain
from onnxcomp.cli.printing.summary import labelled
from onnxcomp.cli.printing.verdicts import agreement, judged, measured_words
from onnxcomp.judgement import is_exact
from onnxcomp.pipeline.reports.plan import Plan, PlannedStep
from onnxcomp.receipt import Entry, Receipt, StepReport
from onnxcomp.verify.limits import BREAKAGE_DIVERGENCE

WITHOUT_DATA = "without --calib-data only what is safe for any input was done; with it more can be gained"
UNKNOWN_COST = "random inputs show breakage and nothing else: what such a budget costs is unknown without --calib-data"
REPLAYED = "the same file as the receipt's; the figures are those of the receipt, nothing was measured again"
KEPT = "kept"
ACCOUNT = ".receipt.json"
NAMED = 3  # weights named in a line without --verbose
ESTIMATED_BITS = (8, 5, 4, 3)


def show(receipt: Receipt, written: Sequence[Path], *, verbose: bool, replayed: bool = False) -> None:
    """What the whole came to, then what changed the model. replayed: nothing of it was measured now."""
    screen.show(screen.headline(summary.heading(receipt, written, replayed=replayed), good=_is_good(receipt)))
    rows = summary.rows(receipt, verbose=verbose)
    if verbose:
        rows.append(("verified", verification(receipt)))
        rows += [] if receipt.data["random"] else judged(receipt.verdict, receipt.metric.get("evidence"))
    rows += labelled("note", [*([REPLAYED] if replayed else []), *_notes(receipt)])
    rows += labelled("also", written[1:] if verbose else [each for each in written[1:] if not _is_account(each)])
    screen.show(screen.facts(rows, indent=2), "")
    if verbose:
        _show_steps(receipt)
    else:
        _show_changes(receipt)
    _show_tried(receipt, verbose=verbose)
    if verbose:
        _show_names(receipt)
        return
    account = [str(each) for each in written if _is_account(each)]
    page = [f"onnxcomp report {each}" for each in account] or ["--report page.html"]
    has_page = any(each.suffix == ".html" for each in written)
    screen.show("", f"Details: {', '.join(['-v', *account, *([] if has_page else page)])}")


def _is_account(path: Path) -> bool:
    return path.name.endswith(ACCOUNT)


def _is_good(receipt: Receipt) -> bool:
    return bool(receipt.verdict["passed"]) and bool(receipt.verdict.get("verified", True)) and not receipt.missed


def _show_changes(receipt: Receipt) -> None:
    """A line for each step that changed the model, or was not used."""
    listed = screen.table("  ", " ", "", right=(" ",), whole=("  ",))
    for name, gained, done in steps.changed(receipt):
        listed.add_row(*screen.cells(f"  {name}", gained, done))
    for name, why in steps.unused(receipt):
        listed.add_row(*screen.cells(f"  {name}", "", why))
    counted = steps.counted(receipt)
    screen.show(f"{counted}{':' if listed.row_count else ''}", *([listed] if listed.row_count else []))


def _show_steps(receipt: Receipt) -> None:
    """All steps, with what each came to and why it was not kept whole."""
    headings = ("step", "result", "bytes after", f"{measure_name(receipt)} (95% interval)", "weights and nodes")
    listed = screen.table(*headings, right=("bytes after",), whole=("step",))
    for report in receipt.steps:
        decision, bytes_after = report.decision, f"{report.bytes_after:,}"
        listed.add_row(*screen.cells(report.rewrite, decision, bytes_after, divergence(report), touched(report)))
    screen.show(listed, *_reasons(receipt))


def measure_name(receipt: Receipt) -> str:
    """What the steps' numbers are: a divergence, or the drop of a score."""
    name = str(receipt.metric["name"])
    return f"{name} drop" if receipt.metric.get("original_score") is not None else name


def divergence(report: StepReport) -> str:
    """How far from the original the model is after a step, with the interval that the samples allow."""
    if report.divergence is None:
        return ""
    if report.interval is None:
        return formats.significant(report.divergence)
    low, high = report.interval
    value, low_words, high_words = map(formats.significant, (report.divergence, low, high))
    return f"{value} ({low_words} to {high_words})"


def touched(report: StepReport) -> str:
    """How many weights and nodes were changed, left alone and taken back."""
    parts = [
        f"{len(entries):,} {word}"
        for entries, word in (
            (report.changed, "changed"),
            (report.taken_back, "taken back"),
            (report.skipped, "skipped"),
        )
        if entries
    ]
    return ", ".join(parts)


def _reasons(receipt: Receipt) -> list[str]:
    """Why steps were not kept whole, and which weights that concerns."""
    lines = []
    for report in receipt.steps:
        if report.reason:
            lines.append(f"{report.rewrite}: {report.reason}")
        if report.taken_back:
            lines.append(f"  taken back: {_named(report.taken_back)}")
    return ["", *lines] if lines else []


def _show_tried(receipt: Receipt, *, verbose: bool) -> None:
    """What was tried on the whole model: the kept one marked, then the others, the fastest first."""
    rows = tried(receipt.steps)
    error = measure_name(receipt) if receipt.metric.get("original_score") is not None else "error"
    listed = screen.table("", "tried", "time", error, "size", "result", right=("time", error, "size"), whole=("tried",))
    idle = [row for row in rows if not row[1]]
    for row in rows:
        if row[1] or verbose:
            listed.add_row(*screen.cells("*" if row[4] == KEPT else "", *row))
    if not rows:
        return
    more = f"{len(idle)} more came to nothing that could be timed (-v lists {'it' if len(idle) == 1 else 'them'})"
    against = "the kept one's" if any(row[4] == KEPT for row in rows) else "the original's"
    how = f"Time is beside {against}, in turns; the latency above was measured once more at the end."
    if len(idle) == len(rows) and not verbose:
        screen.show("", more.replace(" more", ""))
        return
    screen.show("", listed, *([] if verbose or not idle else [more]), how)


def tried(reports: Sequence[StepReport]) -> list[tuple[str, str, str, str, str]]:
    """A row for each thing tried, the fastest first: name, time beside that of the kept one (of the model before where
    none was kept), distance from the original, bytes, result."""
    found = [(report, each) for report in reports for each in report.tried]
    found.sort(key=lambda pair: (pair[1].latency_ratio is None, pair[1].latency_ratio or 0.0))
    return [
        (
            each.name,
            "" if each.latency_ratio is None else f"{each.latency_ratio / _kept_ratio(report):.3f}",
            "" if each.divergence is None else formats.significant(each.divergence),
            "" if each.bytes_after is None else formats.size(each.bytes_after),
            plain(each.outcome),
        )
        for report, each in found
    ]


def _kept_ratio(report: StepReport) -> float:
    return next((each.latency_ratio for each in report.tried if each.outcome == KEPT and each.latency_ratio), 1.0)


def _named(entries: Sequence[Entry]) -> str:
    names = [formats.shortened(each.name) for each in entries[:NAMED]]
    more = len(entries) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _show_names(receipt: Receipt) -> None:
    listed = screen.table("step", "weight or node", "decision", "what or why", whole=("step",))
    for report in receipt.steps:
        for decision, entries in (
            ("changed", report.changed),
            ("taken back", report.taken_back),
            ("skipped", report.skipped),
        ):
            for each in entries:
                listed.add_row(*screen.cells(report.rewrite, each.name, decision, _detailed(each)))
    if listed.row_count:
        screen.show("", listed)


def _detailed(entry: Entry) -> str:
    notes = [f"{key.replace('_', ' ')} {_value(value)}" for key, value in entry.details.items()]
    return "; ".join([*([entry.what] if entry.what != "taken back" else []), *notes])


def _value(value: Any) -> str:
    return formats.significant(value) if isinstance(value, float) else str(value)


def totals(receipt: Receipt, written: Sequence[Path] = ()) -> list[tuple[str, str]]:
    """What the run comes to, as names and words."""
    rows = [("size", _size_words(receipt))]
    rows += costs(receipt.measured, before="original", after="result")
    rows.append(("verified", verification(receipt)))
    if not receipt.data["random"]:
        rows += judged(receipt.verdict, receipt.metric.get("evidence")) + agreement(receipt.verdict)
    rows.append(("needs", _needs_words(receipt)))
    if "seconds" in receipt.measured:
        rows.append(("took", formats.seconds(receipt.measured["seconds"])))
    rows += labelled("note", _notes(receipt))
    rows += labelled("goal missed", receipt.missed)
    rows += labelled("written", written)
    return rows


def _notes(receipt: Receipt) -> list[str]:
    notes = list(receipt.notes)
    unstored = steps.unstored(receipt)
    if unstored:
        notes.append(unstored)
    if not receipt.applied:
        notes.append("nothing was gained: the output is the original")
    if not receipt.applied or receipt.recipe == "distill":
        notes += _idle(receipt.steps)
    if receipt.applied and receipt.recipe == "packed":
        notes.append("its bytes are few once `onnxcomp pack` has coded them")
    if receipt.data["random"] and not (receipt.applied and is_exact(receipt)):
        limit = receipt.metric["limit"]
        is_wide = limit is None or limit > BREAKAGE_DIVERGENCE
        notes.append(UNKNOWN_COST if receipt.applied and is_wide else WITHOUT_DATA)
    return notes


def _idle(reports: Sequence[StepReport]) -> list[str]:
    """Why the last step that left something alone did nothing, where it is the change that was asked for."""
    last = next((each for each in reversed(reports) if each.skipped or each.taken_back), None)
    if last is None or last.changed or last.taken_back:  # what was taken back is told with its step
        return []
    first, *others = {each.name: each.what for each in last.skipped}.items()
    more = f", and {formats.count(len(others), 'other')} (-v lists all)" if others else ""
    return [f"{last.rewrite} did nothing: {first[0]}: {plain(first[1])}{more}"]


def _size_words(receipt: Receipt) -> str:
    before, after = int(receipt.source["bytes"]), int(receipt.result["bytes"])
    return f"{before:,} -> {after:,} bytes, {formats.smaller(before, after)}"


def costs(measured: dict[str, Any], *, before: str, after: str) -> list[tuple[str, str]]:
    """Load time, load memory and latency of two models, with their ratios; nothing where they were not measured."""
    rows = []
    for name, key, words, scale in (
        ("load time", "load_s", formats.milliseconds, 1e3),
        ("load memory", "load_peak_bytes", formats.size, 1),
        ("latency", "latency_ms", formats.milliseconds, 1),
    ):
        if f"{key}_ratio" in measured:
            first, second = (words(scale * measured[f"{key}_{which}"]) for which in (before, after))
            rows.append((name, f"{first} -> {second}, ratio {measured[f'{key}_ratio']:.2f}"))
    return rows


def verification(receipt: Receipt) -> str:
    """On what the result was verified, and how it came out."""
    words = measured_words(receipt.verdict, metric=str(receipt.metric["name"]))
    if not receipt.verdict.get("verified", True):
        return f"not verified: {words}"
    if receipt.data["random"]:
        return f"on random inputs on {receipt.target}, which shows breakage only: {words}"
    samples = formats.count(receipt.data["verification_samples"], "sample")
    distinct = receipt.metric.get("evidence", {}).get("distinct", receipt.data["verification_samples"])
    samples += "" if distinct == receipt.data["verification_samples"] else f" ({distinct} distinct)"
    if receipt.data["verification_samples"] == receipt.data["samples"]:  # too few to keep some apart
        return f"on the {samples} of calibration itself, on {receipt.target}: {words}"
    return f"on {samples} that calibration did not see, on {receipt.target}: {words}"


def _needs_words(receipt: Receipt) -> str:
    oldest = receipt.result.get("needs_onnxruntime")
    version = f"ONNX Runtime {oldest} or newer" if oldest else "a newer ONNX Runtime than any known"
    # In which version ONNX Runtime's own operators came, and changed, no opset says.
    own = receipt.result.get("contributed_operators", [])
    more = f" that has {', '.join(own[:NAMED])}" + (f" and {len(own) - NAMED} more" if len(own) > NAMED else "")
    return f"{version}{more if own else ''} (opset {receipt.result['opset']}, IR {receipt.result['ir_version']})"


def _planned(steps: Sequence[PlannedStep], *, verbose: bool, depth: int = 0) -> Iterator[tuple[str, str, str, str]]:
    """A row for each step, those inside it indented below: name, decision, parameters, what it does."""
    for each in steps:
        given = ", ".join(f"{name}={each.parameters[name]}" for name in (each.parameters if verbose else each.chosen))
        name = "  " * depth + (f"{each.role}: " if each.role else "") + each.rewrite
        yield name, each.decision, given, each.summary
        yield from _planned(each.inner, verbose=verbose, depth=depth + 1)


def show_plan(planned: Plan, *, verbose: bool) -> None:
    """What a run would do."""
    steps = screen.table("step", "would", "parameters", "what it does", whole=("step",))
    for row in _planned(planned.steps, verbose=verbose):
        steps.add_row(*screen.cells(*row))
    screen.show(steps, "")
    eligible = [each for each in planned.weights if not each.excluded]
    estimates = ", ".join(f"{bits} bits {planned.estimated_bytes(bits):,}" for bits in ESTIMATED_BITS)
    data = f"{planned.data} ({formats.count(planned.samples, 'batch' if planned.random else 'sample')})"
    rows = [
        ("model", f"{planned.model}, {planned.size_bytes:,} bytes"),
        ("recipe", planned.recipe),
        ("data", f"{data}: shows breakage only" if planned.random else data),
        ("target", planned.target),
        ("weights", f"{len(eligible)} of {len(planned.weights)} may change"),
        ("estimate", f"bytes of the model with those in codes of {estimates}; the accuracy decides"),
        ("written", "nothing: this was a dry run"),
    ]
    screen.show(screen.facts(rows))
    if verbose:
        listed = screen.table("weight", "shape", "bytes", "", right=("bytes",))
        for weight in planned.weights:
            shape, note = "x".join(map(str, weight.shape)), "excluded" if weight.excluded else ""
            listed.add_row(*screen.cells(weight.name, shape, f"{weight.size_bytes:,}", note))
        screen.show("", listed)
