"""A model on its way through onnxcomp: the original ModelProto, with tensor data left where it lies.

External data is never loaded into the proto: a TensorProto keeps its reference (below 256 MB to a copy in the
scratch folder, which nobody else writes to), ``read_tensor`` maps the file. Large new tensors are spilled to that
folder too and referenced by absolute path, so a model of any size is rewritten tensor by tensor. ``save`` turns all
references into one valid file, or a file and its data.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnxcomp.errors import ModelError
from onnxcomp.external_data import checked_path
from onnxcomp.files import Inputs, Transaction, refuse_files
from onnxcomp.noise import Seed, seed_bytes
from onnxcomp.numerics.encodings.encoding import Encoding
from onnxcomp.operators import ONNX_DOMAINS
from onnxcomp.regular_form import regular_form
from onnxcomp.room import is_full
from onnxcomp.stored_encodings import take_encodings, with_encodings
from onnxcomp.tensors import (
    Scratch,
    clear_reference,
    data_length,
    external_bytes,
    external_path,
    is_external,
    read_tensor,
    reference_of,
    set_location,
    tensors_of,
)
from onnxcomp.validity import refuse_malformed

Array = NDArray[Any]
T = TypeVar("T")

PROTOBUF_LIMIT_BYTES = 2**31 - 2**20  # protobuf's 2 GB, less room for what the headers grow by
INLINE_LIMIT_BYTES = 256 * 2**20  # a model that came with external data is inlined below this size
EXTERNAL_FROM_BYTES = 1024  # smaller tensors stay in the model file beside external data
HASH_DIGITS = 12  # of the data's SHA-256, in the name of an external data file
ALIGNMENT_BYTES = 4096  # of tensors in an external data file, so that runtimes can map them


class Model:
    """A ModelProto, the folder of its external data, and the encodings of its weights.

    inputs: the files that the model, and whatever was made of it, came from; shared by all that derive from it.
    has_data_files: whether it came with external data, and so goes with it where it is large.

    proto: never edited in place by passes; a rewrite makes a new Model that shares the scratch folder.
    encodings: weight key -> Encoding, as far as a pass said how the values are made.
    as_read: what is written instead of ``proto``, where that is but another form of it (see ``regular_form``).
    memo: what was measured of this very model, so that a pass tried on parts of it need not measure again.
    seeds: what its random nodes were given for the time that it is worked on (see ``graph.seeds``).
    """

    def __init__(
        self,
        proto: ModelProto,
        *,
        folder: Path | None = None,
        path: Path | None = None,
        encodings: dict[str, Encoding] | None = None,
        scratch: Scratch | None = None,
        inputs: Inputs | None = None,
        has_data_files: bool = False,
    ) -> None:
        self.proto = proto
        self.folder = folder
        self.path = path
        self.encodings = dict(encodings or {})
        self.scratch = scratch or Scratch()
        self.inputs = inputs or Inputs()
        self.has_data_files = has_data_files
        self.as_read: ModelProto | None = None
        self.memo: dict[Any, Any] = {}
        self.seeds: tuple[Seed, ...] = ()

    @property
    def name(self) -> str:
        """What error messages call the model."""
        return self.path.name if self.path else (self.proto.graph.name or "model")

    @property
    def opset(self) -> int:
        """The version of the default operator set, 0 where the model imports none."""
        return opset_of(self.proto.opset_import)

    @property
    def size_bytes(self) -> int:
        """Bytes of the model file and its external data, without the metadata that ``save`` may add and the seeds."""
        seeds = seed_bytes(self.proto, self.seeds) if self.as_read is None else 0
        own = self.as_written.ByteSize() - seeds
        return own + sum(data_length(t) for t in tensors_of(self.proto) if is_external(t))

    @property
    def as_written(self) -> ModelProto:
        """The model as it goes into a file."""
        return self.proto if self.as_read is None else self.as_read

    def with_proto(self, proto: ModelProto, encodings: dict[str, Encoding] | None = None) -> Model:
        """The same model with another proto, sharing folder and scratch."""
        kept = self.encodings if encodings is None else encodings
        made = Model(
            proto,
            folder=self.folder,
            path=self.path,
            encodings=kept,
            scratch=self.scratch,
            inputs=self.inputs,
            has_data_files=self.has_data_files,
        )
        made.seeds = self.seeds
        made.as_read = self.as_read if proto is self.proto else None
        return made

    def for_a_run(self) -> Model:
        """The same model, to whose inputs a run adds those of its own and leaves the caller's model as it was."""
        made = self.with_proto(self.proto)
        made.inputs = Inputs()
        made.inputs.update(self.inputs)
        return made

    def read(self, tensor: TensorProto) -> Array:
        """The tensor's values, mapped from disk where they are external."""
        return read_tensor(tensor, self.folder)

    def to_bytes(self) -> bytes:
        """The whole model in one message; ModelError above protobuf's limit of 2 GB."""
        if self.size_bytes >= PROTOBUF_LIMIT_BYTES:
            raise ModelError(f"{self.name}: the model is over 2 GB and cannot be one message. Use materialize.")
        return _serialize(self._inlined(), self.name)

    def materialize(self, folder: Path) -> Path:
        """Write the model where ONNX Runtime can load it and give its path. Data files are linked, not copied."""
        folder.mkdir(parents=True, exist_ok=True)
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        linked: dict[Path, str] = {}
        for tensor in tensors_of(proto):
            if is_external(tensor):
                source = external_path(tensor, self.folder)
                if source not in linked:
                    linked[source] = _link(source, folder, f"data{len(linked)}")
                set_location(tensor, linked[source])
        path = folder / "model.onnx"
        path.write_bytes(_serialize(proto, self.name))
        return path

    @contextlib.contextmanager
    def opened_on(self, open_session: Callable[[bytes | Path], T]) -> Iterator[T]:
        """What ``open_session`` makes of the model: from bytes, or from files where it is too large for that."""
        if self.size_bytes < INLINE_LIMIT_BYTES:
            yield open_session(self.to_bytes())
            return
        with tempfile.TemporaryDirectory(prefix="onnxcomp-", dir=self.scratch.folder) as folder:
            yield open_session(self.materialize(Path(folder)))

    def _inlined(self) -> ModelProto:
        if not any(is_external(tensor) for tensor in tensors_of(self.proto)):
            return self.proto
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        for tensor in tensors_of(proto):
            if is_external(tensor):
                raw = external_bytes(tensor, self.folder)
                clear_reference(tensor)
                tensor.raw_data = raw.tobytes()
        return proto


def opset_of(imports: Iterable[onnx.OperatorSetIdProto]) -> int:
    """The default domain's version among opset imports, 0 where it is not imported."""
    return next((each.version for each in imports if each.domain in ONNX_DOMAINS), 0)


def load(source: str | os.PathLike[str] | bytes | ModelProto | Model) -> Model:
    """Read a model from a path, bytes or a ModelProto; external data is checked and left where it is.

    Raises ModelError for a missing or broken file, for something that is not an ONNX model, and for
    external data that is missing, too short or outside the model's folder.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, ModelProto):
        proto = ModelProto()
        proto.CopyFrom(source)
        return _checked(Model(proto))
    if isinstance(source, bytes):
        return _checked(Model(_parse(source, "model")))
    path = Path(source)
    inputs = Inputs([path])
    try:
        if not path.is_file():
            raise ModelError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}.")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}.") from error
    return _checked(Model(_parse(content, path.name), folder=path.parent, path=path, inputs=inputs))


@dataclass(frozen=True)
class Staged:
    """A model that waits in a transaction: the files it will be, their bytes, and the model file's SHA-256."""

    paths: list[Path]
    size_bytes: int
    sha256: str


def save(model: Model, path: str | os.PathLike[str], *, force: bool = False) -> list[Path]:
    """Write the model, whole or not at all, and give the files written (the model, then its data if any).

    No file that the model was read from is ever written to; an existing output needs ``force``. Data goes to
    ``<path>.<hash of the data>.data`` when the model is over 2 GB, or over 256 MB and came with external data.
    Raises ModelError where the inputs are not what they were when they were read.
    """
    target = Path(path)
    refuse_outputs(model, [target], force=force)
    with Transaction() as outputs:
        staged = stage(model, target, outputs)
        stale = stale_data(target, staged, model)
        outputs.commit(stale)
    return staged.paths


def stage(model: Model, target: Path, outputs: Transaction) -> Staged:
    """Write the model aside, for ``outputs.commit`` to put in place after all that is written beside it."""
    model.inputs.refuse_changes()
    paths, size_bytes = [target], 0
    content = as_one_file(model)
    if content is None:
        header = ModelProto()
        header.CopyFrom(with_encodings(model.as_written, model.encodings))
        moved: list[TensorProto] = []
        part, sha256 = outputs.write_aside(target, _move_out(header, model.folder, moved))
        paths.append(target.with_name(f"{target.name}.{sha256[:HASH_DIGITS]}.data"))
        outputs.promise(part, paths[1])
        size_bytes = part.stat().st_size
        for tensor in moved:
            set_location(tensor, paths[1].name)
        content = _serialize(header, model.name)
    outputs.write(target, [content], last=True)
    model.inputs.refuse_changes()
    return Staged(paths, size_bytes + len(content), hashlib.sha256(content).hexdigest())


def as_one_file(model: Model) -> bytes | None:
    """What ``save`` writes where that is one file, whatever it is called; None where the data goes to another."""
    whole = model.with_proto(with_encodings(model.as_written, model.encodings))
    limit = INLINE_LIMIT_BYTES if model.has_data_files else PROTOBUF_LIMIT_BYTES
    return _serialize(whole._inlined(), model.name) if whole.size_bytes < limit else None


def refuse_outputs(model: Model, outputs: Sequence[Path], *, force: bool) -> None:
    """Raise ModelError when outputs (the first of them the model) may not be written, before any work is done.

    They must be other files than each other and than ``model.inputs``; they may not exist, except with ``force``,
    and must have a folder.
    """
    refuse_files(outputs, model.inputs, force=force)
    target = outputs[0]
    for path in target.parent.glob(f"{glob.escape(target.name)}.*data"):  # links to an input, too
        if _is_data_of(path.name, target.name) and model.inputs.holds(path):
            raise ModelError(f"{target}: its data file {path.name} belongs to the input. Name another output.")


def stale_data(target: Path, staged: Staged, model: Model) -> list[Path]:
    """The data files of earlier outputs at ``target``, which nothing refers to once a staged model is there.

    They are known by their names; one called ``<target>.data`` goes where the model that stands there refers to it.
    """
    hashed = target.parent.glob(f"{glob.escape(target.name)}.{'[0-9a-f]' * HASH_DIGITS}.data")
    names = {path.name for path in hashed}
    with contextlib.suppress(OSError, ModelError):  # no model stands there
        old = _parse(target.read_bytes(), target.name)
        names |= {str(reference_of(tensor).get("location")) for tensor in tensors_of(old) if is_external(tensor)}
    found = [target.with_name(name) for name in sorted(names) if _is_data_of(name, target.name)]
    return [path for path in found if path not in staged.paths and not model.inputs.holds(path)]


# --- inside --------------------------------------------------------------------------------------------


def _parse(content: bytes, name: str) -> ModelProto:
    proto = ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(f"{name}: not an ONNX model, or cut short (protobuf: {error}).") from error
    return proto


def _checked(model: Model) -> Model:
    """Refuse what is not a model, take out the stored encodings, check the references, bring it to one form."""
    proto = model.proto
    if not proto.HasField("graph") or not (proto.ir_version or proto.opset_import):
        raise ModelError(f"{model.name}: not an ONNX model: it has no graph or no version.")
    refuse_malformed(proto, model.name)
    if not proto.opset_import:
        proto.opset_import.add(version=1)  # the default of IR versions before 3
    model.encodings = take_encodings(proto, model.name)
    outside = [tensor for tensor in tensors_of(proto) if is_external(tensor)]
    for tensor in outside:
        model.inputs.add(checked_path(tensor, model.name, model.path))
    model.has_data_files = bool(outside)
    _copy_small_data(model, outside)
    model.as_read = regular_form(proto)
    return model


def _copy_small_data(model: Model, tensors: Sequence[TensorProto]) -> None:
    """Have external data below 256 MB read from a copy: a mapped file that someone cuts short ends the process."""
    sources = {external_path(tensor, model.folder) for tensor in tensors}
    if sum(path.stat().st_size for path in sources) >= INLINE_LIMIT_BYTES:
        return
    copies = {}
    for path in sorted(sources):
        copies[path] = model.scratch.new_path(".data")
        try:
            shutil.copyfile(path, copies[path])
        except OSError as error:
            if is_full(error):
                raise
            raise ModelError(f"{path}: cannot be read: {error.strerror}.") from error
    for tensor in tensors:
        set_location(tensor, str(copies[external_path(tensor, model.folder)]))
    model.inputs.refuse_changes()  # nor was one cut short before it was copied whole


def _serialize(proto: ModelProto, name: str) -> bytes:
    try:
        return proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise ModelError(f"{name}: the model cannot be serialized: {error}.") from error


def _is_data_of(name: str, model_name: str) -> bool:
    """Whether a file of that name is, or was, the data file of a model that ``save`` wrote under the other name."""
    return re.fullmatch(rf"{re.escape(model_name)}\.([0-9a-f]{{{HASH_DIGITS}}}\.)?data", name) is not None


def _link(source: Path, folder: Path, name: str) -> str:
    target = folder / name
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
    return name


def _move_out(proto: ModelProto, folder: Path | None, moved: list[TensorProto]) -> Iterator[bytes | Array]:
    """Turn the tensors of ``proto`` into references to one file, yet to be named, and yield that file's content.

    moved: gets the tensors that refer to it.
    """
    position = 0
    for tensor in tensors_of(proto):
        if not is_external(tensor) and not tensor.HasField("raw_data"):
            continue
        data = external_bytes(tensor, folder) if is_external(tensor) else np.frombuffer(tensor.raw_data, np.uint8)
        clear_reference(tensor)
        if data.size < EXTERNAL_FROM_BYTES:
            tensor.raw_data = data.tobytes()
            continue
        padding = -position % ALIGNMENT_BYTES
        yield bytes(padding)
        position += padding
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("offset", str(position)), ("length", str(data.size))):
            tensor.external_data.add(key=key, value=value)
        moved.append(tensor)
        yield data
        position += data.size
