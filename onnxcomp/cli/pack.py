"""``onnxcomp pack MODEL``: a model in the fewest bytes, for downloads and updates."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcomp.cli.running import options


@click.command()
@options.model_argument
@click.option("-o", "--out", "output", type=options.PATH, metavar="OUT",
              help="File to write. [default: MODEL with .onnxp for .onnx]")  # fmt: skip
@click.option("--base", type=options.PATH, metavar="BASE",
              help="A model, packed or not, that whoever unpacks has: only what differs is packed.")  # fmt: skip
@click.option("--encrypt-to", "recipients", multiple=True, metavar="RECIPIENT",
              help="Encrypt to an age recipient (age1...) or an SSH public key. May be repeated.")  # fmt: skip
@click.option("--passphrase-file", type=options.PATH, metavar="FILE",
              help="Encrypt by a passphrase, the first line of FILE.")  # fmt: skip
@click.option("--identity", "identities", type=options.PATH, multiple=True, metavar="FILE",
              help="What opens an encrypted BASE: age identities or an SSH private key. May be repeated.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors (and what --json asks for).")
def command(
    model: Path,
    output: Path | None,
    base: Path | None,
    recipients: tuple[str, ...],
    passphrase_file: Path | None,
    identities: tuple[Path, ...],
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Pack MODEL and its external data in one file of the fewest bytes; unpack gives them back bit for bit.

    For downloads, updates and archives: any model, whatever made it. Needs the extra onnxcomp[pack].
    """
    from onnxcomp import formats
    from onnxcomp.cli.printing import screen
    from onnxcomp.packing.encryption import Locks, PackKeys
    from onnxcomp.packing.packer import pack

    target = output or model.with_name(f"{model.name.removesuffix('.onnx')}.onnxp")
    locks, keys = Locks(recipients, passphrase_file), PackKeys(identities, passphrase_file)
    made = pack(model, target, base=base, locks=locks, keys=keys, force=force)
    if as_json:
        sizes = {"bytes_before": made.model_bytes, "bytes_after": made.size_bytes}
        screen.show_json({"files": [str(made.path)], "tensors": made.tensors, **sizes})
    elif not quiet:
        ratio = formats.smaller(made.model_bytes, made.size_bytes)
        words = f"{made.model_bytes:,} -> {made.size_bytes:,} bytes, {ratio}"
        screen.show(screen.facts([("size", words), ("written", str(made.path))]))
