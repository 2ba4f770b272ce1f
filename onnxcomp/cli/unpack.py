"""``onnxcomp unpack FILE``: a packed model as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcomp.cli.running import options

if TYPE_CHECKING:
    from onnxcomp.packing.encryption import PackKeys

PACKED_ENDING = ".onnxp"


@click.command()
@click.argument("packed", type=options.PATH, metavar="FILE")
@click.option("-o", "--out", "output", type=options.PATH, metavar="OUT",
              help="File to write. [default: FILE with .onnx for .onnxp]")  # fmt: skip
@click.option("--base", type=options.PATH, metavar="BASE", help="The model that FILE is a delta of, packed or not.")
@click.option("--identity", "identities", type=options.PATH, multiple=True, metavar="FILE",
              help="What opens an encrypted FILE: age identities or an SSH private key. May be repeated.")  # fmt: skip
@click.option("--passphrase-file", type=options.PATH, metavar="FILE",
              help="The passphrase of an encrypted FILE: the first line of this one.")  # fmt: skip
@click.option("--as", "form", type=click.Choice(["compact", "plain"]), default="compact", show_default=True,
              help="compact: bit for bit what was packed; plain: with every weight that onnxcomp stored compactly as a "
                   "plain tensor, as expand writes it.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors (and what --json asks for).")
def command(
    packed: Path,
    output: Path | None,
    base: Path | None,
    identities: tuple[Path, ...],
    passphrase_file: Path | None,
    form: str,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the model that FILE holds, with its external data under the names that it had.

    Nothing is written where FILE is broken, or no key opens it. Needs the extra onnxcomp[pack].
    """
    from onnxcomp.cli.printing import screen
    from onnxcomp.packing.encryption import PackKeys

    target = output or packed.with_name(f"{packed.name.removesuffix(PACKED_ENDING)}.onnx")
    unpacking = partial(_unpacked, packed, base, PackKeys(identities, passphrase_file))
    paths = _plain(unpacking, packed, target, force) if form == "plain" else unpacking(target, force)
    size = sum(path.stat().st_size for path in paths)
    if as_json:
        screen.show_json({"files": [str(path) for path in paths], "bytes": size})
    elif not quiet:
        screen.show(screen.facts([("size", f"{size:,} bytes"), *(("written", str(path)) for path in paths)]))


def _unpacked(packed: Path, base: Path | None, keys: PackKeys, target: Path, force: bool) -> tuple[Path, ...]:
    from onnxcomp.packing.unpacker import unpack

    return unpack(packed, target, base=base, keys=keys, force=force).paths


def _plain(
    unpacking: Callable[[Path, bool], tuple[Path, ...]], packed: Path, target: Path, force: bool
) -> tuple[Path, ...]:
    """Unpack aside, expand, and write what that gives."""
    import tempfile

    from onnxcomp.files import Inputs, refuse_files
    from onnxcomp.model import load, save
    from onnxcomp.pipeline.reports.expansion import expand_checked

    refuse_files([target], Inputs([packed]), force=force)
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        aside = unpacking(Path(folder) / target.name, False)[0]
        return tuple(save(expand_checked(load(aside)).model, target, force=force))
