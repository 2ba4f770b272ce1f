"""``onnxcomp unpack FILE``: a packed model as it was."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcomp.cli import options

PACKED_ENDING = ".onnxp"


@click.command()
@click.argument("packed", type=options.PATH, metavar="FILE")
@click.option("-o", "--out", "output", type=options.PATH, metavar="OUT",
              help="File to write. [default: FILE with .onnx for .onnxp]")  # fmt: skip
@click.option("--as", "form", type=click.Choice(["compact", "plain"]), default="compact", show_default=True,
              help="compact: bit for bit what was packed; plain: with every weight that onnxcomp stored compactly as a "
                   "plain tensor, as expand writes it.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors (and what --json asks for).")
def command(packed: Path, output: Path | None, form: str, force: bool, as_json: bool, quiet: bool) -> None:
    """Write the model that FILE holds, with its external data under the names that it had.

    Nothing is written where FILE is broken. Needs the extra onnxcomp[pack].
    """
    from onnxcomp.cli import screen
    from onnxcomp.packing.unpacker import unpack

    target = output or packed.with_name(f"{packed.name.removesuffix(PACKED_ENDING)}.onnx")
    paths = _plain(packed, target, force) if form == "plain" else unpack(packed, target, force=force).paths
    size = sum(path.stat().st_size for path in paths)
    if as_json:
        screen.show_json({"files": [str(path) for path in paths], "bytes": size})
    elif not quiet:
        screen.show(screen.facts([("size", f"{size:,} bytes"), *(("written", str(path)) for path in paths)]))


def _plain(packed: Path, target: Path, force: bool) -> tuple[Path, ...]:
    """Unpack aside, expand, and write what that gives."""
    import tempfile

    from onnxcomp.files import Inputs, refuse_files
    from onnxcomp.model import load, save
    from onnxcomp.packing.unpacker import unpack
    from onnxcomp.pipeline.reports.expansion import expand_checked

    refuse_files([target], Inputs([packed]), force=force)
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        aside = unpack(packed, Path(folder) / target.name).paths[0]
        return tuple(save(expand_checked(load(aside)).model, target, force=force))
