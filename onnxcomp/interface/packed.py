"""``expand``, ``pack``, ``unpack`` and ``open_session`` from Python."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx

from onnxcomp.errors import ParameterError
from onnxcomp.interface.arguments import PathLike, Source, a_model, a_target
from onnxcomp.model import Model, load
from onnxcomp.packing import packer, session, unpacker
from onnxcomp.packing.encryption import Locks, PackKeys
from onnxcomp.packing.opening import is_packed
from onnxcomp.pipeline.reports.expansion import expand_checked
from onnxcomp.runtime import Session


def expand(model: Source) -> Model:
    """The model with what ``store-compact`` wrote decoded to plain tensors, each compared with what ONNX Runtime
    computes from it. Raises VerificationError where one differs."""
    return expand_checked(load(a_model(model))).model


def pack(
    model: PathLike,
    output: PathLike | None = None,
    *,
    base: PathLike | None = None,
    encrypt_to: str | Iterable[str] = (),
    passphrase_file: PathLike | None = None,
    identities: Iterable[PathLike] = (),
    force: bool = False,
) -> packer.Packed:
    """Pack a model's files, bit for bit, in one of the fewest bytes; needs the extra ``onnxcomp[pack]``.

    output: the file to write, by default ``model.onnxp`` beside ``model.onnx``. base: a model that whoever unpacks has;
    only what differs is packed. encrypt_to, passphrase_file: whom it is for; identities: what opens an encrypted base.
    Raises ModelError or PackError; then nothing is written.
    """
    source = _path("model", model)
    target = _target(source, ".onnx", ".onnxp", output)
    recipients = (encrypt_to,) if isinstance(encrypt_to, str) else tuple(encrypt_to)
    secret = None if passphrase_file is None else Path(passphrase_file)
    locks, keys = Locks(recipients, secret), PackKeys(tuple(map(Path, identities)), secret)
    return packer.pack(source, target, base=None if base is None else Path(base), locks=locks, keys=keys, force=force)


def unpack(
    packed: PathLike,
    output: PathLike | None = None,
    *,
    base: PathLike | None = None,
    identities: Iterable[PathLike] = (),
    passphrase_file: PathLike | None = None,
    force: bool = False,
) -> unpacker.Unpacked:
    """Write the model that a packed file holds, its external data beside it, as they were.

    output: by default ``model.onnx`` beside ``model.onnxp``. base: the model that a delta was taken against.
    identities, passphrase_file: what opens an encrypted file. Raises PackError; then nothing is written.
    """
    source = _path("packed", packed)
    target = _target(source, ".onnxp", ".onnx", output)
    keys = PackKeys(tuple(map(Path, identities)), None if passphrase_file is None else Path(passphrase_file))
    return unpacker.unpack(source, target, base=None if base is None else Path(base), keys=keys, force=force)


def _target(source: Path, ending: str, wanted: str, output: PathLike | None) -> Path:
    """The file to write: the one named, else the source's name with another ending."""
    if output is not None:
        return _path("output", output)
    return source.with_name(f"{source.name.removesuffix(ending)}{wanted}")


def _path(argument: str, value: Any) -> Path:
    if not isinstance(value, (str, os.PathLike)):
        raise ParameterError(f"{argument}: must be the path of a file, got a value of type {type(value).__name__}")
    return Path(value)


def open_session(
    model: PathLike | bytes | onnx.ModelProto | Model,
    *,
    ep: str = "cpu",
    threads: int = 1,
    identities: Iterable[PathLike] = (),
    passphrase_file: PathLike | None = None,
    base: PathLike | None = None,
) -> Session:
    """A session of ONNX Runtime on a model, packed or not: ``open_session("m.onnxp").run({"x": array})``.

    ep, threads: as for ``optimize``. identities, passphrase_file: what opens an encrypted one. base: the model that a
    delta was taken against. Raises PackError where the file is broken, TargetError where the model does not load.
    """
    if isinstance(model, (str, os.PathLike)) and is_packed(Path(model)):
        keys: dict[str, Any] = {"identities": tuple(identities), "passphrase_file": passphrase_file, "base": base}
        return session.open_session(Path(model), ep=ep, threads=threads, **keys)
    opened = load(a_model(model))
    if opened.path is not None:
        return a_target(ep, threads=threads).session(opened.path)
    with opened.opened_on(a_target(ep, threads=threads).session) as made:
        return made
