"""Freed memory goes back to the system, where its C library has a way."""

from __future__ import annotations

import subprocess
import sys

import pytest

KEPT = """
import ctypes, psutil
from onnxcomp.memory import return_freed
ctypes.CDLL(None).mallopt(-3, 2**30)  # no mapping of its own for any piece
held = [bytearray(2**20) for _ in range(200)]
last = bytearray(2**20)  # on top of the heap, so that freeing does not shrink it
own = psutil.Process()
full = own.memory_info().rss
del held
kept = own.memory_info().rss
return_freed()
print(full - own.memory_info().rss, full - kept)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_what_was_freed_is_returned() -> None:
    ran = subprocess.run([sys.executable, "-P", "-c", KEPT], capture_output=True, text=True, check=True)
    returned, without = map(int, ran.stdout.split())
    assert returned > 150 * 2**20 > without


def test_nothing_happens_where_there_is_no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcomp import memory

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    memory.return_freed()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    memory.return_freed()
