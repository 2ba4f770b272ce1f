"""A packed file that was changed gives the model that was packed, or an error, and nothing else."""

from __future__ import annotations

import contextlib
import io
import os
import random
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from onnxcomp.errors import PackError
from onnxcomp.packing.container import TRAILER, VERSION
from onnxcomp.packing.packed import PackedModel
from onnxcomp.packing.packer import pack
from onnxcomp.packing.unpacker import unpack
from tests.packing.test_round_trip import arrays, compact, with_tensors

MUTANTS = 10_000 if os.environ.get("ONNXCOMP_THOROUGH") else 300
MOST_BYTES = 64 * 2**20


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A model of many kinds of tensors, and the same packed."""
    folder = tmp_path_factory.mktemp("packed")
    rng = np.random.default_rng(0)
    compact(rng.integers(0, 11, (24, 20)).astype(np.float32), folder / "c.onnx")
    held = with_tensors(*arrays().values())
    held.MergeFromString((folder / "c.onnx").read_bytes())
    (folder / "m.onnx").write_bytes(held.SerializeToString())
    pack(folder / "m.onnx", folder / "m.onnxp")
    return (folder / "m.onnx").read_bytes(), (folder / "m.onnxp").read_bytes()


def unpacked(content: bytes) -> bytes:
    """The model file in a container."""
    model = PackedModel(io.BytesIO(content))
    return b"".join(piece for file in model.layout.files for piece in model.content(file))


def with_true_sums(content: bytes) -> bytes:
    """The container with the checksum of its index set right: what ill will would do."""
    if len(content) < TRAILER.size:
        return content
    packed_length, length, _, end = TRAILER.unpack(content[-TRAILER.size :])
    index = content[max(0, len(content) - TRAILER.size - packed_length) : -TRAILER.size]
    return content[: -TRAILER.size] + TRAILER.pack(packed_length, length, zlib.crc32(index), end)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes cut out, repeated, moved, put in, or the end gone; anywhere, or near the index."""
    made = bytearray(content)
    start = 0 if rng.random() < 0.5 else max(0, len(content) - 400)
    at, other = (rng.randrange(start, len(content)) for _ in range(2))
    length = rng.choice((1, 2, 8, 100))
    kind = rng.choice(("flip", "flips", "set", "cut", "leave out", "repeat", "move", "put in"))
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else 8):
            made[rng.randrange(start, len(made))] ^= 1 << rng.randrange(8)
    elif kind == "set":
        made[at : at + length] = rng.choice((b"\x00", b"\xff", b"\x7f")) * length
    elif kind == "cut":
        del made[at:]
    elif kind == "leave out":
        del made[at : at + length]
    elif kind == "repeat":
        made[at:at] = made[at : at + length]
    elif kind == "move":
        part = made[at : at + length]
        del made[at : at + length]
        made[other:other] = part
    else:
        made[at:at] = rng.randbytes(length)
    return bytes(made)


def test_ten_thousand_changed_files_give_the_model_or_an_error(packed: tuple[bytes, bytes]) -> None:
    model, content = packed
    rng = random.Random(20)
    came_out = 0
    tracemalloc.start()
    for number in range(MUTANTS):
        changed = mutated(content, rng)
        if number % 2:
            changed = with_true_sums(changed)
        try:
            assert unpacked(changed) == model
            came_out += 1
        except PackError:
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST_BYTES
    assert came_out < MUTANTS / 10


def test_changed_files_with_all_checksums_true_give_the_model_or_an_error(
    packed: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if whoever changed the file had made all checksums but the SHA-256 anew."""
    model, content = packed
    monkeypatch.setattr(zlib, "crc32", lambda data, value=0: 0)
    rng = random.Random(21)
    content = content[: -TRAILER.size] + TRAILER.pack(*TRAILER.unpack(content[-TRAILER.size :])[:2], 0, b"PXNO")
    for _ in range(MUTANTS):
        changed = mutated(content, rng)
        with contextlib.suppress(PackError):
            assert unpacked(changed) == model


def test_nothing_is_written_where_the_end_is_broken(packed: tuple[bytes, bytes], tmp_path: Path) -> None:
    _, content = packed
    for cut in (1, 10, len(content) // 2, len(content) - 3):
        (tmp_path / "m.onnxp").write_bytes(content[:-cut])
        with pytest.raises(PackError):
            unpack(tmp_path / "m.onnxp", tmp_path / "m.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnxp"]


def test_a_version_from_the_future_is_refused_by_its_number(packed: tuple[bytes, bytes]) -> None:
    _, content = packed
    with pytest.raises(PackError, match=f"version {VERSION + 1}"):
        unpacked(content[:8] + bytes([VERSION + 1]) + content[9:])


def test_a_file_outside_the_folder_is_refused(tmp_path: Path, packed: tuple[bytes, bytes]) -> None:
    from onnxcomp.packing.layout import FileLayout
    from onnxcomp.packing.unpacker import path_of

    for name in ("../x", "/etc/x", "a/../../x", "a\0b", ".."):
        with pytest.raises(PackError, match="outside"):
            path_of(FileLayout(name, 0, ()), tmp_path / "m.onnx")
