"""Bytes of any kind: as they are, by Zstandard, or by LZMA; and small alphabets by counts alone.

The first byte says which.
"""

from __future__ import annotations

import lzma
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import PackError
from onnxcomp.packing.coders.range_coder import SymbolReader, SymbolWriter
from onnxcomp.packing.extra import needed

Array = NDArray[Any]

RAW, ZSTD, LZMA, COUNTED, ZSTD_BESIDE = range(5)
LEVEL = 19
FASTER_LEVEL = 9
LARGE_BYTES = 2**22  # from here on the faster level
LZMA_MOST = 2**18  # bytes that LZMA is tried on
COUNTED_LEAST = 48
PROBED_FROM, PROBE_BYTES, PROBES = 2**16, 2**13, 8  # of longer content a sample says what can be gained
HOPELESS = 0.997  # of the bytes by a sample: not worth the time
COUNTED_ONLY = 0.985  # of them by repetition: the rest is in the counts
BYTE_PRIOR = np.full(256, 8)
LZMA_LEAST_DICTIONARY = 2**12
LZMA_READ = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**24}]


def write_bytes(content: bytes, known: bytes = b"") -> bytes:
    """The fewest bytes that ``read_bytes`` makes the content of. known: like content, which whoever reads has too."""
    found = [bytes([RAW]) + content]
    promise = promised(content) if not known else 0.0
    if promise > HOPELESS:
        return found[0]
    if content and promise < COUNTED_ONLY:
        level = LEVEL if len(content) < LARGE_BYTES else FASTER_LEVEL
        packed = needed("zstandard").ZstdCompressor(
            level=level, write_content_size=False, write_checksum=False
        ).compress(content)
        found.append(bytes([ZSTD]) + packed)
        if known:
            found.append(bytes([ZSTD_BESIDE]) + _zstd_beside(content, known, level))
    if 0 < len(content) <= LZMA_MOST:
        found.append(bytes([LZMA]) + lzma.compress(content, lzma.FORMAT_RAW, filters=_lzma_filters(len(content))))
    if len(content) >= COUNTED_LEAST:
        writer = SymbolWriter()
        writer.adaptive(np.frombuffer(content, np.uint8).astype(np.int64), BYTE_PRIOR)
        found.append(bytes([COUNTED]) + writer.content())
    return min(found, key=len)


def promised(content: bytes | memoryview) -> float:
    """The share of its bytes that content takes by a sample of it, by counts or by repetition; 0 for a short one."""
    if len(content) < PROBED_FROM:
        return 0.0
    step = len(content) // PROBES
    sample = b"".join(bytes(content[at : at + PROBE_BYTES]) for at in range(0, step * PROBES, step))
    counts = np.bincount(np.frombuffer(sample, np.uint8), minlength=256)
    shares = counts[counts > 0] / len(sample)
    bits = float(-(shares * np.log2(shares)).sum()) - (len(shares) - 1) / (2 * len(sample) * np.log(2))
    packed = len(needed("zstandard").ZstdCompressor(level=3).compress(sample))
    return float(min(bits / 8, packed / len(sample)))


def read_bytes(packed: bytes, length: int, known: bytes = b"") -> bytes:
    """The inverse, for content of a known length. Raises PackError where it is not what was packed."""
    if not packed:
        raise PackError("the packed file is broken: a part is empty.")
    kind, body = packed[0], packed[1:]
    if kind == RAW:
        content = body
    elif kind == ZSTD:
        content = _unzstd(body, length)
    elif kind == ZSTD_BESIDE and known:
        content = _unzstd(body, length, known)
    elif kind == LZMA:
        content = _unlzma(body, length)
    elif kind == COUNTED:
        content = SymbolReader(body).adaptive(length, BYTE_PRIOR).astype(np.uint8).tobytes()
    else:
        raise PackError(f"the packed file is broken: it has bytes of an unknown kind {kind}.")
    if len(content) != length:
        raise PackError("the packed file is broken: a part has another length than it says.")
    return content


def _lzma_filters(length: int) -> list[dict[str, int]]:
    size = max(LZMA_LEAST_DICTIONARY, 1 << (length - 1).bit_length())
    return [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": size, "lc": 3, "lp": 0, "pb": 0}]


def _zstd_beside(content: bytes, known: bytes, level: int) -> bytes:
    zstandard = needed("zstandard")
    beside = zstandard.ZstdCompressionDict(known, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    packer = zstandard.ZstdCompressor(level=level, dict_data=beside, write_content_size=False, write_dict_id=False)
    found: bytes = packer.compress(content)
    return found


def _unzstd(body: bytes, length: int, known: bytes = b"") -> bytes:
    zstandard = needed("zstandard")
    beside = zstandard.ZstdCompressionDict(known, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if known else None
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=2**27, dict_data=beside).stream_reader(body)
        return bytes(reader.read(length + 1))
    except zstandard.ZstdError as error:
        raise PackError(f"the packed file is broken: {error}.") from error


def _unlzma(body: bytes, length: int) -> bytes:
    try:
        reader = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA_READ)
        return reader.decompress(body, length + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise PackError(f"the packed file is broken: {error}.") from error
