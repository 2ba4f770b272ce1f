"""A model on its way through onnxcomp: the original ModelProto, with tensor data left where it lies.

External data is never loaded into the proto: a TensorProto keeps its reference (below 256 MB to a copy in the
scratch folder, which nobody else writes to), ``read_tensor`` maps the file. Large tensors that came inside the model
file, and large new ones, lie in that folder too and are referenced by absolute path, so a model of any size is copied
without its data and rewritten tensor by tensor. ``save`` turns all references into one valid file, or a file and its
data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
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
from onnxcomp.model_source import ModelSource, Referring
from onnxcomp.noise import Seed, take_seeds
from onnxcomp.numerics.encodings.encoding import Encoding
from onnxcomp.operators import ONNX_DOMAINS
from onnxcomp.regular_form import regular_form
from onnxcomp.room import is_full
from onnxcomp.stored_encodings import take_encodings, with_encodings
from onnxcomp.tensors import (
    ALIGNMENT_BYTES,
    HeldFile,
    Scratch,
    clear_reference,
    data_length,
    external_bytes,
    external_path,
    hold,
    is_external,
    is_mapped,
    read_tensor,
    reference_of,
    set_location,
    spilled_from,
    tensors_of,
)
from onnxcomp.validity import refuse_malformed
from onnxcomp.wire import Missing, Piece, with_data

Array = NDArray[Any]
T = TypeVar("T")

PROTOBUF_LIMIT_BYTES = 2**31 - 2**20  # protobuf's 2 GB, less room for what the headers grow by
INLINE_LIMIT_BYTES = 256 * 2**20  # a model that came with external data is inlined below this size
EXTERNAL_FROM_BYTES = 1024  # smaller tensors stay in the model file beside external data
KEPT_OPEN = "kept open"  # in ``Model.memo``
HASH_DIGITS = 12  # of the data's SHA-256, in the name of an external data file


class Model:
    """A ModelProto, the folder of its external data, and the encodings of its weights.

    inputs: the files that the model, and whatever was made of it, came from; shared by all that derive from it.
    has_data_files: whether it came with external data, and so goes with it where it is large.

    proto: never edited in place by passes; a rewrite makes a new Model that shares the scratch folder.
    encodings: weight key -> Encoding, as far as a pass said how the values are made.
    as_read: what is written instead of ``proto``, where that is but another form of it (see ``regular_form``).
    memo: what was measured of this very model, so that a pass tried on parts of it need not measure again.
    seeds: what its random nodes were given for the time that it is worked on (see ``graph.seeds``).
    files: of the scratch folder that tensors refer to and that are to go with the last model that does, by location.
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
        self.files: dict[str, HeldFile] = {}

    def __repr__(self) -> str:
        return f"<Model {self.name}: {len(self.proto.graph.node)} nodes, opset {self.opset}>"

    @property
    def name(self) -> str:
        """What error messages call the model."""
        return self.path.name if self.path else (self.proto.graph.name or "model")

    @property
    def opset(self) -> int:
        """The version of the default operator set, 0 where the model imports none."""
        return opset_of(self.proto.opset_import)

    @functools.cached_property
    def size_bytes(self) -> int:
        """Bytes of the model file and its external data, without the metadata that ``save`` may add and the seeds."""
        proto = self.as_written
        if self.as_read is None and self.seeds:
            proto = copied(proto)
            take_seeds(proto, self.seeds)
        size = sum(map(len, self._pieces(proto)))
        if size < self._inline_limit:
            return size
        return int(proto.ByteSize()) + sum(data_length(each) for each in tensors_of(proto) if is_external(each))

    @property
    def _inline_limit(self) -> int:
        """From how many bytes on the data is saved to a file of its own."""
        return INLINE_LIMIT_BYTES if self.has_data_files else PROTOBUF_LIMIT_BYTES

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
        made.files = self.files
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
        values = read_tensor(tensor, self.folder)
        file = self.files.get(reference_of(tensor).get("location", "")) if is_external(tensor) else None
        if file is not None and is_mapped(values):
            hold(values, file)
        return values

    def to_bytes(self) -> bytes:
        """The whole model in one message; ModelError above protobuf's limit of 2 GB."""
        pieces = self._pieces(self.proto)
        if sum(map(len, pieces)) >= PROTOBUF_LIMIT_BYTES:
            raise ModelError(f"{self.name}: the model is over 2 GB and cannot be one message. Use materialize.")
        return b"".join(self._filled(pieces))

    def materialize(self, folder: Path) -> Path | Referring:
        """Write the model where ONNX Runtime can load it. External data stays where it lies."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "model.onnx"
        source = self._source(lambda: folder)
        header = source.model if isinstance(source, Referring) else source
        assert isinstance(header, bytes)
        path.write_bytes(header)
        return dataclasses.replace(source, model=path) if isinstance(source, Referring) else path

    def written_whole(self, folder: Path) -> ModelSource:
        """The model as a file that holds all of it, as ``save`` would write it; beside its data where that is large."""
        pieces = self._pieces(self.proto)
        if sum(map(len, pieces)) >= self._inline_limit:
            return self.materialize(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "model.onnx"
        with path.open("wb") as file:
            file.writelines(self._filled(pieces))
        return path

    @contextlib.contextmanager
    def opened_on(self, open_session: Callable[[ModelSource], T]) -> Iterator[T]:
        """What ``open_session`` makes of the model; the same again within ``kept_open``."""
        kept: tuple[contextlib.ExitStack, dict[Any, Any]] | None = self.memo.get(KEPT_OPEN)
        with contextlib.ExitStack() as own:
            stack, sessions = kept or (own, {})
            if open_session not in sessions:
                with contextlib.ExitStack() as opening:

                    def folder(opening: contextlib.ExitStack = opening) -> Path:
                        made = tempfile.TemporaryDirectory(prefix="onnxcomp-", dir=self.scratch.folder)
                        return Path(opening.enter_context(made))

                    sessions[open_session] = open_session(self._source(folder))
                    stack.push(opening.pop_all())
            yield sessions[open_session]

    @contextlib.contextmanager
    def kept_open(self) -> Iterator[None]:
        """Have the model opened once in each way: ONNX Runtime takes seconds to open thousands of nodes."""
        with contextlib.ExitStack() as stack:
            self.memo[KEPT_OPEN] = stack, {}
            try:
                yield
            finally:
                del self.memo[KEPT_OPEN]

    def _source(self, folder: Callable[[], Path]) -> bytes | Referring:
        """The model in one message, or referring to its data. folder: makes one for what has to lie in one place."""
        if not any(is_external(each) for each in tensors_of(self.proto)):
            return self.to_bytes()
        header, root = copied(self.proto), Path(self.scratch.folder.anchor)
        for tensor in tensors_of(header):
            if is_external(tensor):
                path = external_path(tensor, self.folder)
                if path.anchor == str(root):
                    set_location(tensor, str(path.relative_to(root)))
                else:  # on another drive
                    _take_in(tensor, self.folder)
        return Referring(_serialize(header, self.name), root, functools.partial(self._in_one_place, folder))

    def _in_one_place(self, made: Callable[[], Path]) -> bytes | Path:
        """One message, or a file in the folder beside its data where it is too large for that."""
        if self.size_bytes < INLINE_LIMIT_BYTES:
            return self.to_bytes()
        folder = made()
        header = copied(self.proto)
        copies: dict[Path, str] = {}
        for tensor in tensors_of(header):
            if is_external(tensor):
                source = external_path(tensor, self.folder)
                if source not in copies:
                    copies[source] = f"data{len(copies)}"
                    shutil.copyfile(source, folder / copies[source])
                set_location(tensor, copies[source])
        path = folder / "whole.onnx"
        path.write_bytes(_serialize(header, self.name))
        return path

    def _pieces(self, proto: ModelProto) -> list[Piece]:
        """One message of a form of the model, with the places of the data that lies in files."""
        return with_data(_serialize(proto, self.name), data_length)

    def _filled(self, pieces: Iterable[Piece]) -> Iterator[bytes | memoryview]:
        """The pieces with their data, which is read one tensor at a time."""
        for each in pieces:
            yield external_bytes(each.tensor, self.folder).data if isinstance(each, Missing) else each


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
    scratch = Scratch()
    if isinstance(source, ModelProto):
        content = _serialize(source, "model")
        return _checked(Model(_parse(spilled_from(content, scratch), "model"), scratch=scratch))
    if isinstance(source, bytes):
        return _checked(Model(_parse(spilled_from(source, scratch), "model"), scratch=scratch))
    path = Path(source)
    inputs = Inputs([path])
    try:
        if not path.is_file():
            raise ModelError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}.")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}.") from error
    proto = _parse(spilled_from(content, scratch), path.name)
    return _checked(Model(proto, folder=path.parent, path=path, scratch=scratch, inputs=inputs))


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
    content = as_one_file(model)
    if content is not None:
        part, sha256 = outputs.write_aside(target, content)
        paths, size_bytes = [target], 0
    else:
        header = copied(with_encodings(model.as_written, model.encodings))
        moved: list[TensorProto] = []
        data, sha256 = outputs.write_aside(target, _move_out(header, model.folder, moved))
        paths = [target, target.with_name(f"{target.name}.{sha256[:HASH_DIGITS]}.data")]
        outputs.promise(data, paths[1])
        size_bytes = data.stat().st_size
        for tensor in moved:
            set_location(tensor, paths[1].name)
        part, sha256 = outputs.write_aside(target, [_serialize(header, model.name)])
    outputs.promise(part, target, last=True)
    model.inputs.refuse_changes()
    return Staged(paths, size_bytes + part.stat().st_size, sha256)


def as_one_file(model: Model) -> Iterator[bytes | memoryview] | None:
    """What ``save`` writes where that is one file, whatever it is called, piece by piece; None where the data goes to
    another."""
    pieces = model._pieces(with_encodings(model.as_written, model.encodings))
    return model._filled(pieces) if sum(map(len, pieces)) < model._inline_limit else None


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
    outside = [each for each in tensors_of(proto) if is_external(each) and not model.scratch.holds(each)]
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


def copied(proto: ModelProto) -> ModelProto:
    """A copy to be edited."""
    made = ModelProto()
    made.CopyFrom(proto)
    return made


def _serialize(proto: ModelProto, name: str) -> bytes:
    try:
        return proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise ModelError(f"{name}: the model cannot be serialized: {error}.") from error


def _is_data_of(name: str, model_name: str) -> bool:
    """Whether a file of that name is, or was, the data file of a model that ``save`` wrote under the other name."""
    return re.fullmatch(rf"{re.escape(model_name)}\.([0-9a-f]{{{HASH_DIGITS}}}\.)?data", name) is not None


def _take_in(tensor: TensorProto, folder: Path | None) -> None:
    raw = external_bytes(tensor, folder)
    clear_reference(tensor)
    tensor.raw_data = raw.tobytes()


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
