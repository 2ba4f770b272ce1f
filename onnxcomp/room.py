"""Room on disk for what a run keeps aside, in TMPDIR: asked for before the work starts, missed where it runs out."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnxcomp.errors import RoomError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
EXHAUSTED_BYTES = 2**16  # a file system that has no more than this is full
MB = 10**6
GROWTH = 2.0  # times what was kept when the room ran out: what to come back with, at least


def is_full(error: BaseException) -> bool:
    """Whether it says that a disk, or the share of it that one may use, is full."""
    return isinstance(error, OSError) and error.errno in FULL


def is_exhausted(folder: Path) -> bool:
    """Whether a folder's file system is full: what others say of it has many words."""
    return shutil.disk_usage(folder).free < EXHAUSTED_BYTES


def full(folder: Path) -> OSError:
    """The error of writing to a full folder."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def refuse_lack(what: str, needed: int) -> None:
    """Raise RoomError where the folder for temporary files has not that many bytes free. what: needs them."""
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RoomError(
            f"{what} needs up to {_megabytes(needed)} of temporary files and {folder} has {free // MB:,} MB free: "
            f"set TMPDIR to a folder with {_megabytes(needed)} free."
        )


@contextlib.contextmanager
def room_told(kept: Path, needed: int) -> Iterator[None]:
    """Raise RoomError, which says what to do, where a disk is full. kept: the folder of what a run keeps aside; needed:
    what it was thought to need."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise RoomError(in_words(error, max(needed, int(GROWTH * _bytes_below(kept))))) from error


def in_words(error: OSError, needed: int | None = None) -> str:
    """What a full disk is, and what helps: a larger TMPDIR, where temporary files were written."""
    scratch = Path(tempfile.gettempdir())
    written = error.filename2 or error.filename  # of a copy the second
    place = scratch if written is None else Path(os.fsdecode(written))
    if not place.is_relative_to(scratch):
        return f"no room left in {place if place.is_dir() else place.parent}."
    more = "more room" if needed is None else f"{_megabytes(needed)} free"
    return f"no room left in {scratch}: set TMPDIR to a folder with {more}."


def _bytes_below(folder: Path) -> int:
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found += os.lstat(os.path.join(place, name)).st_size
    return found


def _megabytes(count: float) -> str:
    return f"{math.ceil(count / MB):,} MB"
