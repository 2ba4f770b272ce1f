"""``onnxcomp inspect MODEL``: what the model consists of and what could be gained where."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcomp.cli.running import options

if TYPE_CHECKING:
    from onnxcomp.calibration import Sequences
    from onnxcomp.graph.report.channel_groups import GroupList
    from onnxcomp.graph.report.inspection import Inspection
    from onnxcomp.pipeline.reports.sensitivity_report import SensitivityTable
    from onnxcomp.target import Target

WORTH_SAYING = 0.05  # of the file; what gains less is not shown
SHOWN = 15  # rows of a table without --verbose


@click.command()
@options.model_argument
@click.option("--sensitivity", is_flag=True,
              help="Measure on --data how much each weight matters and the bits it tolerates.")  # fmt: skip
@click.option("--groups", is_flag=True, help="List the channels, hidden units and heads that could be cut.")
@options.inputs_options
@options.input_shape_option
@options.target_options
@options.json_option
@click.option("-v", "--verbose", is_flag=True, help="List every tensor and operator.")
def command(
    model: Path,
    sensitivity: bool,
    groups: bool,
    calib_data: str | Sequences | None,
    seed: int,
    ep: str,
    threads: int,
    custom_ops: tuple[Path, ...],
    input_shapes: dict[str, tuple[int, ...]],
    as_json: bool,
    verbose: bool,
) -> None:
    """Show MODEL's weights, bytes, operators and multiply-accumulates, and what could be gained where.

    With --sensitivity, a ranked table of its weights instead; with --groups, what would have to be cut together and
    what that would save.
    """
    from onnxcomp.cli.printing import screen
    from onnxcomp.graph.report.inspection import inspect
    from onnxcomp.target import Target

    if sensitivity and groups:
        raise click.UsageError("--sensitivity and --groups are two tables: ask for one of them.")
    if input_shapes and (sensitivity or groups):
        raise click.UsageError("--input-shape is for the table of operators: leave out --sensitivity and --groups.")
    if groups:
        _groups(model, as_json=as_json, verbose=verbose)
        return
    if sensitivity:
        if calib_data is None:
            raise click.UsageError("--sensitivity is measured on inputs: give them with --data.")
        target = Target.of(ep, threads=threads, custom_ops=custom_ops)
        _sensitivity(model, calib_data, target, seed, as_json=as_json, verbose=verbose)
        return
    found = inspect(model, input_shapes=input_shapes)
    if as_json:
        derived = {"graph_bytes": found.graph_bytes, "weight_bytes": found.weight_bytes}
        screen.show_json({**dataclasses.asdict(found), **derived})
    else:
        _show(found, verbose=verbose)


def _sensitivity(
    model: Path, calib_data: str | Sequences, target: Target, seed: int, *, as_json: bool, verbose: bool
) -> None:
    from onnxcomp.cli.printing import screen
    from onnxcomp.pipeline.reports.sensitivity_report import measure_sensitivity

    with screen.progress(quiet=as_json) as tell:
        found = measure_sensitivity(model, calibration=calib_data, target=target, seed=seed, progress=tell)
    if as_json:
        screen.show_json(dataclasses.asdict(found))
    else:
        _show_sensitivity(found, None if verbose else SHOWN)


def _show_sensitivity(found: SensitivityTable, limit: int | None) -> None:
    from onnxcomp import formats
    from onnxcomp.cli.printing import screen

    listed = screen.table("weight", "role", "bytes", "influence", "bits that it tolerates", right=_SENSITIVITIES)
    for each in found.weights[:limit]:
        name = each.name if limit is None else formats.shortened(each.name)
        bits = "" if each.bits is None else str(each.bits)
        listed.add_row(
            *screen.cells(name, each.kind, f"{each.size_bytes:,}", formats.significant(each.influence), bits)
        )
    screen.show(listed, *_more(len(found.weights), limit, "weights"), "")
    screen.show(
        f"Influence: divergence of the outputs on {found.samples} samples for each unit of relative squared error "
        f"of the node's own output. Bits: with all weights so, the divergence is at most {found.divergence:.3g}; "
        "none where it is more in 8 bits."
    )


def _groups(model: Path, *, as_json: bool, verbose: bool) -> None:
    from onnxcomp.cli.printing import screen
    from onnxcomp.contract import Context
    from onnxcomp.graph.report.channel_groups import list_groups
    from onnxcomp.model import load
    from onnxcomp.pipeline.apply import apply_pass
    from onnxcomp.registry import get_pass

    seen = load(model)
    for name in get_pass("prune-channels").prepared_by:  # what cuts sees the model after these
        seen, _ = apply_pass(seen, get_pass(name)(), Context())
    found = list_groups(seen)
    if as_json:
        screen.show_json(dataclasses.asdict(found))
    else:
        _show_groups(found, None if verbose else SHOWN)


def _show_groups(found: GroupList, limit: int | None) -> None:
    from onnxcomp import formats
    from onnxcomp.cli.printing import screen

    headings = ("group", "units", "cut along", "bytes a unit", "bytes", "MACs a unit", "MACs")
    listed = screen.table(*headings, right=headings[3:])
    for each in found.groups[:limit]:
        name = each.name if limit is None else formats.shortened(each.name)
        members = [f"{member.constant}[{member.axis}]" for member in each.members]
        along = "\n".join(members) if limit is None else formats.count(len(members), "constant")
        sizes = (f"{size:,}" for size in (each.unit_bytes, each.bytes, each.unit_macs, each.macs))
        listed.add_row(*screen.cells(name, f"{each.units:,} {each.kind}", along, *sizes))
    stay = screen.table("has to stay", "why")
    for declined in found.declined[:limit]:
        name = declined.node if limit is None else formats.shortened(declined.node)
        stay.add_row(*screen.cells(name, declined.reason))
    if not found.groups:
        screen.show("It has no channels that could be cut.")
    else:
        screen.show(listed, *_more(len(found.groups), limit, "groups"))
    if found.declined:
        screen.show("", stay, *_more(len(found.declined), limit, "nodes"))
    screen.show("", "MACs for a batch of one; dimensions that the model leaves open counted as 1.")


def _show(found: Inspection, *, verbose: bool) -> None:
    from onnxcomp.cli.printing import screen

    screen.show(screen.facts(_facts(found)))
    _show_operators(found, None if verbose else SHOWN)
    _show_weights(found, None if verbose else SHOWN)
    _show_gains(found)


def _facts(found: Inspection) -> list[tuple[str, str]]:
    from onnxcomp.formats import count

    opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
    rows = [
        ("model", f"{found.name}{f', made by {found.producer}' if found.producer else ''}"),
        ("version", f"opset {opsets}; IR {found.ir_version}"),
        *(("input", each) for each in found.inputs),
        *(("output", each) for each in found.outputs),
        ("size", _size_words(found)),
    ]
    if found.text_bytes:
        words = f"{found.text_bytes:,} bytes of the graph are metadata and doc strings that nothing reads at run time"
        rows.append(("texts", f"{words} (`onnxcomp optimize --recipe lossless` removes them)"))
    inner = [(found.subgraph_count, "subgraph"), (found.function_count, "local function")]
    within = ", ".join(count(number, noun) for number, noun in inner if number)
    rows.append(("nodes", f"{found.node_count:,}{f', {within}' if within else ''}"))
    rows.append(("MACs", _mac_words(found)))
    if found.quantized:
        words = ", ".join(f"{number} {name}" for name, number in found.quantized.items())
        rows.append(("quantized", f"already: {words}"))
    if found.encoded_weights:
        noted = count(found.encoded_weights, "weight")
        rows.append(("compressed", f"already: {noted} made by onnxcomp, with a note of how"))
    if found.compact_tensors:
        stored = count(found.compact_tensors, "tensor")
        are = "is" if found.compact_tensors == 1 else "are"
        rows.append(("compact", f"{stored} {are} computed from fewer bytes (`onnxcomp expand` makes them plain)"))
    if found.custom_ops:
        rows.append(("custom operators", f"{', '.join(found.custom_ops)} (running needs --custom-ops)"))
    return rows


def _size_words(found: Inspection) -> str:
    constants = found.constant_bytes
    words = f"{found.size_bytes:,} bytes: {constants:,} in constants, {found.graph_bytes:,} for the graph"
    return f"{words}; {found.external_bytes:,} in external files" if found.external_bytes else words


def _mac_words(found: Inspection) -> str:
    from onnxcomp.formats import count
    from onnxcomp.input_shapes import shape_words

    at = f"at {shape_words(found.input_shapes)}" if found.input_shapes else "for a batch of one"
    words = f"{'at least ' if found.macs_partial or found.macs_unknown else ''}{found.macs:,} {at}"
    open_sizes = "dimensions that the model leaves open counted as 1: --input-shape says them"
    notes = [open_sizes] if found.macs_partial else []
    if found.macs_unknown:
        notes.append(f"not counted: {count(found.macs_unknown, 'node')} of unknown shape")
    return f"{words} ({'; '.join(notes)})" if notes else words


def _show_operators(found: Inspection, limit: int | None) -> None:
    from onnxcomp.cli.printing import screen

    listed = screen.table("operator", "nodes", "constant bytes", "share", "MACs", right=_NUMBERS)
    for each in found.operators[:limit]:
        share = f"{each.weight_bytes / max(found.size_bytes, 1):.1%}"
        listed.add_row(
            *screen.cells(each.name, f"{each.count:,}", f"{each.weight_bytes:,}", share, _or_blank(each.macs))
        )
    screen.show("", listed, *_more(len(found.operators), limit, "operators"))


def _show_weights(found: Inspection, limit: int | None) -> None:
    from onnxcomp import formats
    from onnxcomp.cli.printing import screen
    from onnxcomp.graph.report.coded_sizes import GAIN_BITS

    if not found.tensors:
        screen.show("", "It has no constants: there is nothing to compress.")
        return
    bits = GAIN_BITS if limit is None else (8, 4)
    headings = ("constant", "shape", "type", "role", "bytes", *(f"{each} bits" for each in bits))
    listed = screen.table(*headings, right=(*_NUMBERS, *headings[5:]))
    for each in found.tensors[:limit]:
        kind = each.kind if each.kind != "constant" else ", ".join(each.operators) or "not read"
        sizes = [_or_blank(each.bits_bytes.get(width)) for width in bits]
        encoding = f" ({each.encoding})" if each.encoding else ""
        shape = "x".join(map(str, each.shape)) or "scalar"
        name = each.name if limit is None else formats.shortened(each.name)
        listed.add_row(*screen.cells(f"{name}{encoding}", shape, each.dtype, kind, f"{each.size_bytes:,}", *sizes))
    screen.show("", listed, *_more(len(found.tensors), limit, "constants"))


def _show_gains(found: Inspection) -> None:
    from onnxcomp import formats
    from onnxcomp.cli.printing import screen

    if not found.gains or found.gains[-1].size_bytes > (1 - WORTH_SAYING) * found.size_bytes:
        return
    listed = screen.table("all weights in", "model bytes, about", "", right=("model bytes, about",))
    for gain in found.gains:
        words = formats.smaller(found.size_bytes, gain.size_bytes)
        listed.add_row(*screen.cells(f"{gain.bits} bits", f"{gain.size_bytes:,}", words))
    screen.show("", listed, "", "How few bits the accuracy tolerates differs by model: onnxcomp optimize finds out.")


_SENSITIVITIES = ("bytes", "influence", "bits that it tolerates")
_NUMBERS = ("nodes", "constant bytes", "share", "MACs", "bytes")


def _or_blank(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _more(total: int, limit: int | None, noun: str) -> list[str]:
    return [f"... and {total - limit} more {noun} (-v lists all)"] if limit is not None and total > limit else []
