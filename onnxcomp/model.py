"""A model on its way through onnxcomp: the original ModelProto, with tensor data left where it lies.

External data is never loaded into the proto: a TensorProto keeps its reference, ``read_tensor`` maps the
file. Large new tensors are spilled to a scratch folder and referenced by absolute path, so a model of any
size is rewritten tensor by tensor. ``save`` turns all references into one valid file, or a file and its data.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnxcomp.errors import ModelError
from onnxcomp.noise import Seed, seed_bytes
from onnxcomp.numerics.encoding import Encoding, encoding_from_dict
from onnxcomp.tensors import (
    Scratch,
    clear_reference,
    data_length,
    data_offset,
    external_bytes,
    external_path,
    is_external,
    read_tensor,
    reference_of,
    set_location,
    tensors_of,
)

Array = NDArray[Any]
T = TypeVar("T")

ENCODINGS_KEY = "onnxcomp.encodings"
PROTOBUF_LIMIT_BYTES = 2**31 - 2**20  # protobuf's 2 GB, less room for what the headers grow by
INLINE_LIMIT_BYTES = 256 * 2**20  # a model that came with external data is inlined below this size
EXTERNAL_FROM_BYTES = 1024  # smaller tensors stay in the model file beside external data
ALIGNMENT_BYTES = 4096  # of tensors in an external data file, so that runtimes can map them


class Model:
    """A ModelProto, the folder of its external data, and the encodings of its weights.

    proto: never edited in place by passes; a rewrite makes a new Model that shares the scratch folder.
    encodings: weight key -> Encoding, as far as a pass said how the values are made.
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
    ) -> None:
        self.proto = proto
        self.folder = folder
        self.path = path
        self.encodings = dict(encodings or {})
        self.scratch = scratch or Scratch()
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
        own = self.proto.ByteSize() - seed_bytes(self.proto, self.seeds)
        return own + sum(data_length(t) for t in tensors_of(self.proto) if is_external(t))

    def with_proto(self, proto: ModelProto, encodings: dict[str, Encoding] | None = None) -> Model:
        """The same model with another proto, sharing folder and scratch."""
        kept = self.encodings if encodings is None else encodings
        made = Model(proto, folder=self.folder, path=self.path, encodings=kept, scratch=self.scratch)
        made.seeds = self.seeds
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
    return next((each.version for each in imports if each.domain in ("", "ai.onnx")), 0)


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
    if not path.is_file():
        raise ModelError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}.") from error
    return _checked(Model(_parse(content, path.name), folder=path.parent, path=path))


def save(model: Model, path: str | os.PathLike[str], *, force: bool = False) -> list[Path]:
    """Write the model, whole or not at all, and give the files written (the model, then its data if any).

    The input file is never written to; an existing output needs ``force``. Data goes to ``<path>.data``
    when the model is over 2 GB, or over 256 MB and came with external data.
    """
    target = Path(path)
    refuse_output(target, model=model, force=force)
    proto = _with_encodings(model)
    staged = model.with_proto(proto)
    external = any(is_external(t) and not _in_scratch(t, model) for t in tensors_of(proto))
    limit = INLINE_LIMIT_BYTES if external else PROTOBUF_LIMIT_BYTES
    data = target.with_name(target.name + ".data")
    if staged.size_bytes < limit:
        _write_whole(target, [_serialize(staged._inlined(), model.name)])
        return [target]
    if data.exists() and not force:
        raise ModelError(f"{data}: exists already. Use --force to replace it.")
    header = ModelProto()
    header.CopyFrom(proto)
    _write_whole(data, _move_out(header, model.folder, data.name))
    _write_whole(target, [_serialize(header, model.name)])
    return [target, data]


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    _write_whole(path, [text.encode()])


def refuse_output(target: Path, *, model: Model, force: bool) -> None:
    """Raise ModelError when an output may not be written: it is the input, it exists, or has no folder."""
    if model.path is not None and target.exists() and target.samefile(model.path):
        raise ModelError(f"{target}: is the input, which is never written to. Name another output.")
    if target.exists() and not force:
        raise ModelError(f"{target}: exists already. Use --force to replace it.")
    if not target.parent.is_dir():
        raise ModelError(f"{target}: the folder {target.parent} does not exist.")
    if model.folder is not None:
        data = target.with_name(target.name + ".data").resolve()
        used = {external_path(t, model.folder) for t in tensors_of(model.proto) if is_external(t)}
        if data in used:
            raise ModelError(f"{target}: its data file {data.name} belongs to the input. Name another output.")


# --- inside --------------------------------------------------------------------------------------------


def _parse(content: bytes, name: str) -> ModelProto:
    proto = ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(f"{name}: not an ONNX model, or cut short (protobuf: {error}).") from error
    return proto


def _checked(model: Model) -> Model:
    """Refuse what is not a model, take out the stored encodings, check the references."""
    proto = model.proto
    if not proto.HasField("graph") or not (proto.ir_version or proto.opset_import):
        raise ModelError(f"{model.name}: not an ONNX model: it has no graph or no version.")
    if not proto.opset_import:
        proto.opset_import.add(version=1)  # the default of IR versions before 3
    _take_encodings(model)
    for tensor in tensors_of(proto):
        if is_external(tensor):
            _check_reference(tensor, model)
    return model


def _check_reference(tensor: TensorProto, model: Model) -> None:
    reference = reference_of(tensor)
    location = reference.get("location", "")
    where = f"{model.name}: external data of {tensor.name or 'a tensor'}"
    if model.folder is None:
        raise ModelError(f"{where} cannot be found: the model has no folder. Load it by its path.")
    path = (model.folder / location).resolve()
    if not location or Path(location).is_absolute() or not path.is_relative_to(model.folder.resolve()):
        raise ModelError(f"{where} points outside the model's folder: {location or 'nowhere'}.")
    if not path.is_file():
        raise ModelError(f"{where} is missing: {location}.")
    offset, length = data_offset(tensor, where), data_length(tensor)
    if offset < 0 or length < 0 or offset + length > path.stat().st_size:
        raise ModelError(f"{where} is cut short: {location} ends before byte {offset + length}.")


def _take_encodings(model: Model) -> None:
    kept = []
    for entry in model.proto.metadata_props:
        if entry.key != ENCODINGS_KEY:
            kept.append(entry)
            continue
        try:
            content = json.loads(zlib.decompress(base64.b64decode(entry.value)))
            model.encodings = {name: encoding_from_dict(each) for name, each in content.items()}
        except (ValueError, KeyError, TypeError, binascii.Error, zlib.error) as error:
            raise ModelError(f"{model.name}: the stored encodings are broken: {error}.") from error
    if len(kept) != len(model.proto.metadata_props):
        entries = [(each.key, each.value) for each in kept]
        del model.proto.metadata_props[:]
        for key, value in entries:
            model.proto.metadata_props.add(key=key, value=value)


def _with_encodings(model: Model) -> ModelProto:
    if not model.encodings:
        return model.proto
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    content = json.dumps({name: each.to_dict() for name, each in sorted(model.encodings.items())})
    proto.metadata_props.add(key=ENCODINGS_KEY, value=base64.b64encode(zlib.compress(content.encode())).decode())
    return proto


def _serialize(proto: ModelProto, name: str) -> bytes:
    try:
        return proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise ModelError(f"{name}: the model cannot be serialized: {error}.") from error


def _in_scratch(tensor: TensorProto, model: Model) -> bool:
    return external_path(tensor, model.folder).is_relative_to(model.scratch.folder)


def _link(source: Path, folder: Path, name: str) -> str:
    target = folder / name
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
    return name


def _move_out(proto: ModelProto, folder: Path | None, location: str) -> Iterator[bytes | Array]:
    """Turn the tensors of ``proto`` into references to ``location`` and yield that file's content."""
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
        entries = (("location", location), ("offset", str(position)), ("length", str(data.size)))
        for key, value in entries:
            tensor.external_data.add(key=key, value=value)
        yield data
        position += data.size


def _write_whole(path: Path, content: Iterable[bytes | Array]) -> None:
    """Write beside the target and rename: the file appears whole or not at all."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in content:
                file.write(part if isinstance(part, bytes) else part.data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written: {error.strerror}.") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
