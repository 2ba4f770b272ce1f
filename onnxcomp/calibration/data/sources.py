"""Where calibration arrays come from: .npz, .npy, folders, ONNX test data sets, a user's function.

Every source becomes a list of loaders; a loader gives one mapping of input name to value, memory-mapped
where the file allows, so that nothing is held that is not being fed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import lzma
import math
import os
import shutil
import struct
import sys
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import OptionalProto, SequenceProto, TensorProto, numpy_helper

from onnxcomp.errors import CalibrationError, OnnxcompError
from onnxcomp.runtime import Value, ValueSpec, one_line
from onnxcomp.runtime.isolated import read_values, write_values
from onnxcomp.tensors import data_length, is_external

Array = NDArray[Any]
Loader = Callable[[], Mapping[str, Value]]
LABELS = "labels"
IN_MEMORY_BYTES = 256 * 2**20
UNPACKED_BYTES = 16 * 2**20  # compressed arrays from this size on are unpacked to disk and read from there
MAX_FEEDS = 10_000
LOCAL_HEADER_BYTES = 30
READ_OF_FOLDER = ("*.npz", "*.npy", "input_*.pb", "*/input_*.pb")
SUSPECT_BYTES = 256 * 2**20  # an array that is larger, and was packed to less than ...
SUSPECT_RATIO = 200  # ... this part of its size, is not unpacked
# What numpy and zipfile raise for a file that is broken, beside OSError and MemoryError: their documentation names
# some of it.
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    NotImplementedError,
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    MemoryError,
)


class ArrayScratch:
    """A temporary folder that appears when first asked for and goes with its owner."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def path(self) -> Path:
        """The folder, made now if need be."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="onnxcomp-calibration-")
        return Path(self._folder.name)


def find_loaders(
    source: str | os.PathLike[str], inputs: Sequence[ValueSpec], scratch: ArrayScratch
) -> list[tuple[str, Loader]]:
    """Loaders of ``source`` with a name for each, in a fixed order.

    Raises CalibrationError when there is nothing of that name, or nothing in it.
    """
    path = Path(source)
    if path.is_dir():
        return _folder_loaders(path, inputs, scratch)
    if path.is_file():
        return [(str(path), _file_loader(path, inputs, scratch))]
    if ":" in str(source) and not isinstance(source, Path):
        return function_loaders(str(source), scratch)
    raise CalibrationError(f"calibration data: {source} does not exist (a file, a folder or module:function)")


def source_files(source: str | os.PathLike[str]) -> list[Path]:
    """The files that samples of ``source`` are read from; none for a function."""
    path = Path(source)
    try:
        if path.is_dir():
            return [each for pattern in READ_OF_FOLDER for each in sorted(path.glob(pattern))]
        return [path] if path.is_file() else []
    except (OSError, ValueError):  # a name that no file can have
        return []


def module_file(reference: str) -> Path:
    """Where the module of ``module:function`` lies if it is one of the working folder."""
    return Path(f"{reference.partition(':')[0].replace('.', '/')}.py")


def _folder_loaders(folder: Path, inputs: Sequence[ValueSpec], scratch: ArrayScratch) -> list[tuple[str, Loader]]:
    found = sorted(folder.iterdir())
    sets = [path for path in found if path.is_dir() and any(path.glob("input_*.pb"))]
    if any(folder.glob("input_*.pb")):
        sets.insert(0, folder)
    files = [path for path in found if path.suffix in (".npz", ".npy")]
    loaders: list[tuple[str, Loader]] = [
        (str(path), functools.partial(read_test_data_set, path, inputs)) for path in sets
    ]
    loaders += [(str(path), _file_loader(path, inputs, scratch)) for path in files]
    if not loaders:
        raise CalibrationError(f"calibration data: {folder} holds no .npz, .npy or test_data_set_*")
    return loaders


def _file_loader(path: Path, inputs: Sequence[ValueSpec], scratch: ArrayScratch) -> Any:
    if path.suffix == ".npz":
        return functools.partial(read_npz, path, scratch)
    if path.suffix != ".npy":
        raise CalibrationError(f"calibration data: {path} must be .npz or .npy, or a folder of them")
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise CalibrationError(f"calibration data: {path} holds one array and the model wants: {names}")
    return functools.partial(_read_npy, path, inputs[0].name)


def _read_npy(path: Path, name: str) -> dict[str, Value]:
    """The array of an .npy: mapped where it is large, else read, so that the file may change afterwards."""
    try:
        if path.stat().st_size >= IN_MEMORY_BYTES:
            return {name: _map_array(path)}
        with path.open("rb") as file:
            return {name: np.lib.format.read_array(file, allow_pickle=False)}
    except BROKEN as error:
        raise CalibrationError(f"calibration data: {path} is not a readable .npy ({one_line(error)})") from error


def read_npz(path: Path, scratch: ArrayScratch) -> dict[str, Value]:
    """Arrays of an .npz. Of a large file stored ones are mapped in place; large compressed ones go to disk."""
    arrays: dict[str, Value] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.endswith(".npy"):
                    arrays[member.filename[:-4]] = _read_member(path, archive, member, scratch)
    except BROKEN as error:
        raise CalibrationError(f"calibration data: {path} is not a readable .npz ({one_line(error)})") from error
    return arrays


def _read_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, scratch: ArrayScratch) -> Array:
    is_stored = member.compress_type == zipfile.ZIP_STORED
    if is_stored and path.stat().st_size >= IN_MEMORY_BYTES and member.file_size > LOCAL_HEADER_BYTES:
        return _map_stored(path, member)
    if is_stored or member.file_size < UNPACKED_BYTES:
        with archive.open(member) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    _refuse_bomb(member, shutil.disk_usage(scratch.path).free)
    unpacked = scratch.path / f"{zlib.crc32(str(path.resolve()).encode()):08x}-{member.CRC:08x}.npy"
    if not unpacked.exists():
        with archive.open(member) as stream, unpacked.open("wb") as target:
            while chunk := stream.read(2**22):
                target.write(chunk)
    return _map_array(unpacked)


def _refuse_bomb(member: zipfile.ZipInfo, free_bytes: int) -> None:
    """Raise ValueError for an array that would fill the disk, or is packed as no measured data are."""
    size, packed = member.file_size, member.compress_size
    if size > free_bytes:
        raise ValueError(f"{member.filename} unpacks to {size:,} bytes and {free_bytes:,} are free")
    if size > SUSPECT_BYTES and size > SUSPECT_RATIO * packed:
        raise ValueError(
            f"{member.filename} would unpack from {packed:,} to {size:,} bytes; if that is meant, store it unpacked, "
            "by numpy.savez"
        )


def _map_stored(path: Path, member: zipfile.ZipInfo) -> Array:
    """A stored member in place: its data begin after the local header, whose lengths are its own."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    return _map_array(path, member.header_offset + LOCAL_HEADER_BYTES + name_bytes + extra_bytes)


def _map_array(path: Path, offset: int = 0) -> Array:
    """The array of .npy format that begins at ``offset`` of a file, mapped. Raises ValueError where it is none."""
    with path.open("rb") as file:
        file.seek(offset)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
        start = file.tell()
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if min(shape, default=1) < 0 or start + math.prod(shape) * dtype.itemsize > path.stat().st_size:
        raise ValueError(f"it ends before an array of shape {shape} does")
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", offset=start, shape=shape, order="F" if is_fortran else "C")


def read_test_data_set(folder: Path, inputs: Sequence[ValueSpec]) -> dict[str, Value]:
    """Inputs of an ONNX ``test_data_set_*``: input_0.pb, input_1.pb ... in the model's own order."""
    values: dict[str, Value] = {}
    files = sorted(folder.glob("input_*.pb"), key=_place_of_input)
    by_name = {spec.name: spec for spec in inputs}
    for path, spec in itertools.zip_longest(files, inputs[: len(files)]):
        if spec is None:
            raise CalibrationError(f"calibration data: {path} is one input more than the model has")
        try:
            proto: Any = TensorProto()
            if spec.type.startswith("optional("):
                proto = OptionalProto()
            elif spec.is_sequence:
                proto = SequenceProto()
            proto.ParseFromString(path.read_bytes())
            name = proto.name if isinstance(proto, TensorProto) and proto.name in by_name else spec.name
            if isinstance(proto, TensorProto):
                values[name] = _inline_array(proto)
            elif isinstance(proto, SequenceProto):
                values[name] = numpy_helper.to_list(proto)
            else:
                values[name] = numpy_helper.to_optional(proto)
        except (DecodeError, *BROKEN) as error:
            raise CalibrationError(f"calibration data: {path} is not a tensor ({one_line(error)})") from error
    return values


def _inline_array(tensor: TensorProto) -> Array:
    """The tensor's values. Raises ValueError where they lie in another file, or are fewer than its shape says."""
    if is_external(tensor):
        raise ValueError("its data lie in another file")
    if tensor.HasField("raw_data") and data_length(tensor) != len(tensor.raw_data):
        raise ValueError(f"a shape of {tuple(tensor.dims)} and {len(tensor.raw_data):,} bytes")
    return numpy_helper.to_array(tensor)


def _place_of_input(path: Path) -> int:
    """``input_3.pb`` -> 3."""
    number = path.stem.split("_")[-1]
    if not (number.isascii() and number.isdigit()):
        raise CalibrationError(f"calibration data: {path} must be called input_<number>.pb")
    return int(number)


def function_loaders(reference: str, scratch: ArrayScratch) -> list[tuple[str, Loader]]:
    """Feeds that ``module:function`` gives (one dict, or an iterable of them), called once.

    They are kept, in memory up to 256 MiB and on disk above, so that they can be split and read again.
    """
    return feed_loaders(reference, _feeds(reference), scratch)


def feed_loaders(
    reference: str, feeds: Iterable[Mapping[Any, Value]], scratch: ArrayScratch
) -> list[tuple[str, Loader]]:
    """Loaders of feeds, which are read once. Raises CalibrationError where there are none."""
    loaders: list[tuple[str, Loader]] = []
    held = 0
    for i, feed in enumerate(feeds):
        values = {str(name): as_value(value) for name, value in feed.items()}
        held += sum(value.nbytes for value in values.values() if isinstance(value, np.ndarray))
        if held <= IN_MEMORY_BYTES:
            loaders.append((f"{reference} feed {i}", functools.partial(dict, values)))
            continue
        folder = scratch.path / f"feed{i}"
        write_values(folder, values)
        loaders.append((f"{reference} feed {i}", functools.partial(read_values, folder)))
    if not loaders:
        raise CalibrationError(f"calibration data: {reference} gave no feeds")
    return loaders


def _feeds(reference: str) -> Iterator[Mapping[Any, Value]]:
    """What the user's function gives, at most 10,000 feeds; a generator runs on while it is read."""
    with named(reference):
        feeds = call(reference)
    feeds = [feeds] if isinstance(feeds, Mapping) else feeds
    if not isinstance(feeds, Iterable):
        raise CalibrationError(f"calibration data: {reference} must give dicts of arrays, got {type(feeds).__name__}")
    remaining = itertools.islice(iter(feeds), MAX_FEEDS)
    while True:
        with named(reference):
            feed = next(remaining, None)
        if feed is None:
            return
        if not isinstance(feed, Mapping):
            raise CalibrationError(
                f"calibration data: {reference} must give dicts of arrays, got {type(feed).__name__}"
            )
        yield feed


def call(reference: str, *arguments: Any) -> Any:
    """What the user's ``module:function`` returns; modules are looked for in the working folder too.

    Raises CalibrationError when there is no such function, or it raises anything.
    """
    function = find_function(reference)
    with named(reference):
        return function(*arguments)


def call_score(reference: str, run: Callable[..., Any]) -> float:
    """What the user's ``module:function`` gives for a model's ``run``, which takes arrays by input name and gives them
    by output name: a score, more being better. Raises CalibrationError when it is no number."""
    found = call(reference, run)
    try:
        return float(found)
    except (TypeError, ValueError, OverflowError) as error:
        raise CalibrationError(f"{reference} must give a number, got {type(found).__name__}") from error


@contextlib.contextmanager
def named(reference: str) -> Iterator[None]:
    """Turn what the user's code raises within into one line that names it; the cause stays chained to it."""
    try:
        yield
    except OnnxcompError:
        raise
    except Exception as error:
        raise CalibrationError(f"{reference} raised {type(error).__name__}: {one_line(error)}") from error


def find_function(reference: str) -> Callable[..., Any]:
    """The user's function behind ``module:function``. Raises CalibrationError when there is none."""
    module_name, _, name = reference.partition(":")
    added = [] if "" in sys.path or str(Path.cwd()) in sys.path else [str(Path.cwd())]
    sys.path[:0] = added
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # TypeError: a relative name
        raise CalibrationError(f"{reference} cannot be imported: {error}") from error
    except Exception as error:  # whatever the module does when it is imported
        raise CalibrationError(f"{reference} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    finally:
        for entry in added:
            sys.path.remove(entry)
    if not callable(found):
        raise CalibrationError(f"{reference} is not a function")
    return cast("Callable[..., Any]", found)


def as_value(value: Value) -> Value:
    """A value as an array, unless it is a sequence of such or nothing."""
    if value is None or (isinstance(value, list) and any(isinstance(item, np.ndarray) for item in value)):
        return value
    return np.asarray(value)
