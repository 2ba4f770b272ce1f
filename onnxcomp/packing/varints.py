"""Whole numbers as bytes: seven bits each, the lowest first, the highest bit set where more follow."""

from __future__ import annotations

from collections.abc import Iterable

from onnxcomp.errors import PackError
from onnxcomp.wire import varint

LARGEST_BITS = 63


def numbers(*values: int) -> bytes:
    """Whole numbers of at least 0, one after another."""
    return b"".join(map(varint, values))


def framed(parts: Iterable[bytes]) -> bytes:
    """Parts with their lengths before them; the last one has none, it goes to the end."""
    held = list(parts)
    return b"".join(varint(len(each)) + each for each in held[:-1]) + held[-1]


class NumberReader:
    """Reads numbers and parts from bytes that may be anything. Raises PackError where they end too early."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = memoryview(content)
        self._position = 0

    def number(self, most: int = 2**LARGEST_BITS - 1) -> int:
        """The next number, which is at most ``most``."""
        found = shift = 0
        while self._position < len(self._content) and shift < LARGEST_BITS:
            byte = self._content[self._position]
            self._position += 1
            found |= (byte & 0x7F) << shift
            if byte < 0x80:
                if found > most:
                    break
                return found
            shift += 7
        raise PackError("the packed file is broken: a number is cut short or too large.")

    def part(self) -> bytes:
        """The next part, which has its length before it."""
        return self.take(self.number())

    def take(self, length: int) -> bytes:
        """So many bytes."""
        if length > len(self._content) - self._position:
            raise PackError("the packed file is broken: a part is cut short.")
        self._position += length
        return bytes(self._content[self._position - length : self._position])

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._content) - self._position)

    def finish(self) -> None:
        """Raise PackError where something is left."""
        if self._position != len(self._content):
            raise PackError("the packed file is broken: a part is too long.")
