"""The range coder: whole arrays of symbols against integer frequencies, by the library constriction.

    bits      split = ((65536 - p) * (2^24 - 2) >> 16) + 1 of 2^24 for a zero, the rest for a one; p of 65536
    symbols   cumulated frequencies * (2^24 - n) / total + position, in single precision

The coder has 64 bits of state and writes words of 32 bits. It reads zeros behind its end, so zero bytes there are left
out. docs/container.md has it in full.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import PackError
from onnxcomp.packing.extra import needed

Array = NDArray[Any]

ONE = 2**16  # of a probability
FREQUENCY_TOTAL = 2**16
BLOCK_LEAST, BLOCK_MOST = 64, 2**14  # symbols that are coded between two looks at the counts
COUNT_WEIGHT = 32  # of one symbol that was seen, beside the prior


class SymbolWriter:
    """Writes symbols one array after another."""

    def __init__(self) -> None:
        self._models = _models()
        self._coder = _queue().RangeEncoder()

    def bits(self, bits: Array, ones: Array) -> None:
        """(n,) bits, each with its probability of a one: (n,) in 1 to 65535 of 65536."""
        if bits.size:
            self._coder.encode(bits.astype(np.int32), self._models.Bernoulli(perfect=False), ones / ONE)

    def symbols(self, symbols: Array, frequencies: Array) -> None:
        """(n,) symbols, all with (levels,) frequencies."""
        if symbols.size and frequencies.size > 1:
            self._coder.encode(symbols.astype(np.int32), self._categorical(frequencies))

    def adaptive(self, symbols: Array, prior: Array) -> None:
        """(n,) symbols below len(prior), each block by what came before it. prior: (levels,) positive integers."""
        counts = Counts(prior)
        for start, stop in blocks(symbols.size):
            part = symbols[start:stop]
            self.symbols(part, counts.frequencies())
            counts.add(part)

    def _categorical(self, frequencies: Array) -> Any:
        return self._models.Categorical(frequencies.astype(np.float32), perfect=False)

    def content(self) -> bytes:
        """All that was written."""
        return bytes(self._coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))


class SymbolReader:
    """Reads what ``SymbolWriter`` wrote, by the same calls. Raises PackError where the bytes are no such thing."""

    def __init__(self, content: bytes) -> None:
        self._models = _models()
        padded = content + bytes(-len(content) % 4)
        self._coder = _queue().RangeDecoder(np.frombuffer(padded, "<u4").astype(np.uint32))

    def bits(self, ones: Array) -> Array:
        """(n,) int32 bits of the stated probabilities."""
        if not ones.size:
            return np.zeros(0, np.int32)
        with _errors_told():
            found: Array = self._coder.decode(self._models.Bernoulli(perfect=False), ones / ONE)
        return found

    def symbols(self, count: int, frequencies: Array) -> Array:
        """(count,) int32 symbols of (levels,) frequencies."""
        if not count or frequencies.size < 2:
            return np.zeros(count, np.int32)
        with _errors_told():
            model = self._models.Categorical(frequencies.astype(np.float32), perfect=False)
            found: Array = self._coder.decode(model, count)
        return found

    def adaptive(self, count: int, prior: Array) -> Array:
        """(count,) int32 symbols below len(prior)."""
        counts = Counts(prior)
        found = np.empty(count, np.int32)
        for start, stop in blocks(count):
            part = self.symbols(stop - start, counts.frequencies())
            found[start:stop] = part
            counts.add(part)
        return found


class Counts:
    """Frequencies from what was seen so far and what was thought before."""

    def __init__(self, prior: Array) -> None:
        self._weights = prior.astype(np.int64)

    def frequencies(self) -> Array:
        """(levels,) integers, each at least 1."""
        found: Array = np.maximum(1, self._weights * FREQUENCY_TOTAL // int(self._weights.sum()))
        return found

    def add(self, symbols: Array) -> None:
        """Count (n,) symbols."""
        self._weights += COUNT_WEIGHT * np.bincount(symbols, minlength=self._weights.size)


def blocks(count: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the blocks of ``count`` symbols: twice as many each time, up to a limit."""
    start, size = 0, BLOCK_LEAST
    while start < count:
        yield start, min(count, start + size)
        start, size = start + size, min(2 * size, BLOCK_MOST)


@contextlib.contextmanager
def _errors_told() -> Iterator[None]:
    try:
        yield
    except (AssertionError, ValueError, RuntimeError, OverflowError) as error:
        raise PackError(f"the packed symbols are broken: {error}.") from error


def _queue() -> Any:
    return needed("constriction").stream.queue


def _models() -> Any:
    return needed("constriction").stream.model
