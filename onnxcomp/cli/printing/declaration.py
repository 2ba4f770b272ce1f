"""What a pass declares, as data, as a table and as Markdown: one source, the class itself."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from onnxcomp.cli.printing import screen
from onnxcomp.contract import Needs, Parameter, Pass, parameters


def content(kind: type[Pass]) -> dict[str, Any]:
    """Everything that a pass declares, ready for JSON."""
    return {
        "name": kind.pass_name(),
        "summary": kind.summary(),
        "description": description(kind),
        "needs": kind.needs.value,
        "shrinks": list(kind.effect.shrinks),
        "exact": kind.effect.is_exact,
        "rounding": kind.effect.rounding,
        "paper": kind.paper,
        "makes": sorted(kind.makes),
        "destroys": sorted(kind.destroys),
        "parameters": [_parameter(each) for each in parameters(kind)],
    }


def _parameter(each: Parameter) -> dict[str, Any]:
    return {
        "name": each.name,
        "type": each.type.__name__,
        "default": each.default,
        "allowed": each.allowed,
        "low": each.low,
        "high": each.high,
        "choices": each.choices,
        "optional": each.optional,
        "auto": each.strengths,
        "help": each.help,
    }


def description(kind: type[Pass]) -> str:
    """The docstring below its first line."""
    return inspect.cleandoc(kind.__doc__ or "").partition("\n")[2].strip()


def exactness(kind: type[Pass]) -> str:
    """What the pass promises about the outputs."""
    if not kind.effect.is_exact:
        return "changes the outputs, within the budget"
    return "keeps the outputs, up to float rounding" if kind.effect.rounding else "keeps the outputs"


def shrinks(kind: type[Pass]) -> str:
    """What the pass claims to shrink."""
    return ", ".join(kind.effect.shrinks) or "nothing by itself"


def show_list(kinds: Sequence[type[Pass]]) -> None:
    """A line for each pass."""
    listed = screen.table("pass", "exact", "shrinks", "what it does", whole=("pass",))
    for kind in kinds:
        exact = "yes" if kind.effect.is_exact else "no"
        listed.add_row(*screen.cells(kind.pass_name(), exact, ", ".join(kind.effect.shrinks), _summary(kind)))
    screen.show(listed, "", "More about one: onnxcomp passes NAME. Run one: onnxcomp run NAME MODEL.")


def _summary(kind: type[Pass]) -> str:
    needs = "" if kind.needs is Needs.NOTHING else f" Needs {kind.needs.value}."
    return f"{kind.summary()}{needs}"


def show(kind: type[Pass]) -> None:
    """All that one pass declares."""
    rows = [("shrinks", shrinks(kind)), ("outputs", exactness(kind)), ("needs", kind.needs.value)]
    if kind.paper:
        rows.append(("paper", kind.paper))
    screen.show(f"{kind.pass_name()}: {kind.summary()}", "")
    if description(kind):
        screen.show(description(kind), "")
    screen.show(screen.facts(rows))
    fields = parameters(kind)
    if not fields:
        screen.show("", "It has no parameters.")
        return
    listed = screen.table("parameter", "default", "allowed", "meaning", whole=("parameter",))
    for each in fields:
        listed.add_row(*screen.cells(each.name, default_words(each), allowed_words(each), each.help))
    screen.show("", listed)


def default_words(each: Parameter) -> str:
    """The default as a recipe writes it; a dash where the field may be left out and is."""
    if each.default is None:
        return "-"
    return str(each.default).lower() if isinstance(each.default, bool) else str(each.default)


def allowed_words(each: Parameter) -> str:
    """The allowed values in words, with "auto" for a strength."""
    return f"{each.allowed}, or auto" if each.strengths else each.allowed


def markdown(kind: type[Pass]) -> str:
    """The pass's part of docs/passes.md."""
    lines = [f"## {kind.pass_name()}", "", kind.summary(), ""]
    if description(kind):
        lines += [description(kind), ""]
    lines += [f"- Shrinks: {shrinks(kind)}", f"- Exact: {exactness(kind)}", f"- Needs: {kind.needs.value}"]
    if kind.paper:
        lines.append(f"- Paper: <{kind.paper}>")
    lines.append("")
    fields = parameters(kind)
    if fields:
        lines += ["| parameter | default | allowed | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{each.name}` | {default_words(each)} | {allowed_words(each)} | {cell(each.help)} |" for each in fields
        ]
        lines.append("")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text as a cell of a Markdown table."""
    return text.replace("|", "\\|")


def example(kind: type[Pass]) -> str:
    """What becomes of a model, as the module's docstring shows it, and how the pass is run, as Markdown."""
    strength = kind.strength()
    words = ["onnxcomp run", kind.pass_name(), "model.onnx"]
    if kind.needs is Needs.CALIBRATION:
        words.append("--calib-data samples.npz")
    if strength is not None and strength.strengths:
        words.append(f"--{strength.name.replace('_', '-')} {strength.strengths[len(strength.strengths) // 2]}")
    shown = inspect.cleandoc(inspect.getmodule(kind).__doc__ or "").split("\n\n")
    formulas = [block for block in shown if block and all(line.startswith("    ") for line in block.split("\n"))]
    parts = [f"```text\n{inspect.cleandoc(block)}\n```\n" for block in formulas]
    return "\n".join([*parts, f"<!-- slow: as many runs as passes -->\n```sh\n{' '.join(words)}\n```\n"])
