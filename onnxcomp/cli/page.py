"""The receipt as one HTML file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from onnxcomp import formats
from onnxcomp.cli.receipts import divergence, measure_name, totals, tried
from onnxcomp.receipt import Entry, Receipt, StepReport

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; width: 100% }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
.missed { color: #a00 } h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
details { margin: .25rem 0 1rem } summary { cursor: pointer }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #ddd } th, td { border-color: #444 } }
"""


def render(receipt: Receipt, *, name: str) -> str:
    """The page: what the whole comes to, the steps, the weights by bytes saved, everything that was skipped."""
    parts = [
        f"<h1>{_text(name)}</h1>",
        _facts(totals(receipt)),
        "<h2>Steps</h2>",
        _steps(receipt.steps, measure_name(receipt)),
        *_tried(receipt),
        "<h2>Weights by bytes saved</h2>",
        _weights(receipt.steps),
        *(_details(each) for each in receipt.steps),
        "<h2>Made with</h2>",
        _facts(
            [
                ("recipe", receipt.recipe),
                ("seed", str(receipt.seed)),
                ("target", receipt.target),
                *receipt.versions.items(),
            ]
        ),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_text(name)}</title>'
    opening = f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>'
    return "\n".join([opening, *parts, "</body></html>\n"])


def _steps(steps: Sequence[StepReport], measure: str) -> str:
    rows = [
        (
            each.rewrite,
            ", ".join(f"{key} = {value}" for key, value in each.parameters.items() if value is not None),
            each.decision + (f": {each.reason}" if each.reason else ""),
            f"{each.bytes_before:,}",
            f"{each.bytes_after:,}",
            divergence(each),
            f"{each.seconds:.1f}",
        )
        for each in steps
    ]
    headings = ("step", "parameters", "result", "bytes before", "bytes after", measure, "seconds")
    return _table(headings, rows, numbers={3, 4, 6})


def _tried(receipt: Receipt) -> list[str]:
    """What was tried on the whole model, where a step did."""
    headings = ("tried", "time beside the kept one's", measure_name(receipt), "size", "result")
    rows = tried(receipt.steps)
    return ["<h2>Tried</h2>", _table(headings, rows, numbers={1, 2, 3})] if rows else []


def _weights(steps: Sequence[StepReport]) -> str:
    """What each weight saved, where a step says its bytes before and after."""
    found = [
        (int(each.details["bytes_before"]) - int(each.details["bytes_after"]), report, each)
        for report in steps
        for each in report.changed
        if "bytes_before" in each.details and "bytes_after" in each.details
    ]
    if not found:
        return "<p>No weight got smaller.</p>"
    rows = [
        (
            each.name,
            each.what,
            f"{int(each.details['bytes_before']):,}",
            f"{int(each.details['bytes_after']):,}",
            f"{saved:,}",
            formats.smaller(int(each.details["bytes_before"]), int(each.details["bytes_after"])),
        )
        for saved, report, each in sorted(found, key=lambda item: -item[0])
    ]
    return _table(("weight", "stored as", "bytes before", "bytes after", "saved", ""), rows, numbers={2, 3, 4})


def _details(report: StepReport) -> str:
    """All names of one step, folded away."""
    lists = (("changed", report.changed), ("taken back", report.taken_back), ("skipped", report.skipped))
    rows = [(decision, each.name, _words(each)) for decision, entries in lists for each in entries]
    if not rows:
        return ""
    summary = f"{report.rewrite}: {formats.count(len(rows), 'name')}"
    inner = _table(("decision", "weight or node", "what or why"), rows)
    return f"<details><summary>{_text(summary)}</summary>{inner}</details>"


def _words(entry: Entry) -> str:
    return "; ".join([entry.what, *(f"{key} = {value}" for key, value in entry.details.items())])


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    lines = []
    for name, words in rows:
        mark = ' class="missed"' if name == "goal missed" else ""
        lines.append(f"<tr{mark}><th>{_text(name)}</th><td>{_text(words)}</td></tr>")
    return f"<table>{''.join(lines)}</table>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()) -> str:
    right = set(numbers)

    def line(tag: str, values: Sequence[str]) -> str:
        marks = [' class="number"' if index in right else "" for index in range(len(values))]
        cells = (f"<{tag}{mark}>{_text(value)}</{tag}>" for mark, value in zip(marks, values, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    return f"<table>{line('th', headings)}{''.join(line('td', row) for row in rows)}</table>"


def _text(words: str) -> str:
    return html.escape(words)
