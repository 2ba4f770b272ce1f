"""``onnxcomp expand MODEL``: compact storage back to plain tensors."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcomp.cli import options


@click.command()
@options.model_argument
@click.option("-o", "--out", "output", type=options.PATH, metavar="OUT",
              help="File to write. [default: MODEL with .expanded.onnx for .onnx]")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors (and what --json asks for).")
def command(model: Path, output: Path | None, force: bool, as_json: bool, quiet: bool) -> None:
    """Decode MODEL's compact storage back to plain tensors, for runtimes that do not fold constants.

    The values are the same to the bit.
    """
    from onnxcomp.cli import formats, screen
    from onnxcomp.graph.storage.expand import expand
    from onnxcomp.model import load, refuse_outputs, save

    compact = load(model)
    target = output or options.default_output(model, "expanded")
    refuse_outputs(compact, [target], force=force)
    plain = expand(compact)
    written = save(plain, target, force=force)
    size = sum(path.stat().st_size for path in written)
    if as_json:
        files = [str(path) for path in written]
        screen.show_json({"files": files, "bytes_before": compact.size_bytes, "bytes_after": size})
    elif not quiet:
        what = "nothing in it was stored compactly" if plain is compact else "the values are the same to the bit"
        words = f"{compact.size_bytes:,} -> {size:,} bytes, {formats.smaller(compact.size_bytes, size)}; {what}"
        rows = [("size", words), *(("written", str(path)) for path in written)]
        screen.show(screen.facts(rows))
