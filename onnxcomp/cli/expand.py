"""``onnxcomp expand MODEL``: compact storage back to plain tensors."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcomp.cli.running import options


@click.command()
@options.model_argument
@click.option("-o", "--out", "output", type=options.PATH, metavar="OUT",
              help="File to write. [default: MODEL with .expanded.onnx for .onnx]")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors (and what --json asks for).")
def command(model: Path, output: Path | None, force: bool, as_json: bool, quiet: bool) -> None:
    """Decode MODEL's compact storage back to plain tensors, for runtimes that do not fold constants.

    Only what store-compact wrote is decoded, and only to the very bits that ONNX Runtime computes from it.
    """
    from onnxcomp import formats
    from onnxcomp.cli.printing import screen
    from onnxcomp.model import load, refuse_outputs, save
    from onnxcomp.pipeline.reports.expansion import expand_checked

    compact = load(model)
    target = output or options.default_output(model, "expanded")
    refuse_outputs(compact, [target], force=force)
    plain = expand_checked(compact)
    written = save(plain.model, target, force=force)
    size = sum(path.stat().st_size for path in written)
    if as_json:
        files = [str(path) for path in written]
        sizes = {"bytes_before": compact.size_bytes, "bytes_after": size}
        screen.show_json({"files": files, "tensors": plain.tensors, **sizes})
    elif not quiet:
        words = f"{compact.size_bytes:,} -> {size:,} bytes, {formats.smaller(compact.size_bytes, size)}"
        rows = [("size", f"{words}; {_said(plain.tensors)}"), *(("written", str(path)) for path in written)]
        screen.show(screen.facts(rows))


def _said(tensors: int) -> str:
    from onnxcomp import formats

    if not tensors:
        return "nothing in it was stored compactly by onnxcomp"
    are = "is" if tensors == 1 else "are"
    return f"{formats.count(tensors, 'tensor')} {are} plain, with the very bits that ONNX Runtime computes"
