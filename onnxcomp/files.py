"""The files of a run: those it reads stay as they are, those it writes appear together or not at all.

    with Transaction() as outputs:
        outputs.write(data, parts)
        outputs.write(model, [header], last=True)
        outputs.write(receipt, [text])
        outputs.commit()                  # renames: data, receipt, then the model

Until the model's own rename the old model and its data stand untouched, and from it on the new ones: a process
that is killed at any moment leaves one of the two whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from onnxcomp.errors import ModelError

Array = NDArray[Any]
Content = Iterable[bytes | memoryview | Array]

SHOWN_OF_NAME = 40  # characters of a file's name in that of its part: the whole may be as long as names may be


@dataclass(frozen=True)
class Stamp:
    """What tells a file from another one, and from itself after it was written to."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The stamp of the file behind a path. Raises OSError where there is none."""
        found = path.stat()
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    @property
    def identity(self) -> tuple[int, int]:
        """What hard links to the file, and symbolic ones, share with it."""
        return self.device, self.inode


class Inputs:
    """The files that a run reads, with the stamps they had when it opened them."""

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self._stamps: dict[Path, Stamp] = {}
        self._read_once: set[Path] = set()
        for path in paths:
            self.add(path)

    def add(self, path: Path, *, read_once: bool = False) -> None:
        """Take a file to the inputs, as it is now; what is no file is left out. The first stamp of a path stays.

        read_once: the run has all of it already, so that it may change.
        """
        resolved = _resolved(path)
        with contextlib.suppress(OSError, ValueError):
            if resolved.is_file():
                self._stamps.setdefault(resolved, Stamp.of(resolved))
                if read_once:
                    self._read_once.add(resolved)

    def update(self, other: Inputs) -> None:
        """Take over the files of ``other`` with their stamps."""
        self._stamps = other._stamps | self._stamps
        self._read_once |= other._read_once

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, symbolic links followed."""
        return tuple(self._stamps)

    def holds(self, path: Path) -> bool:
        """Whether a path leads to one of the files, through links of either kind too."""
        resolved = _resolved(path)
        if resolved in self._stamps:
            return True
        try:
            identity = Stamp.of(resolved).identity
        except (OSError, ValueError):
            return False
        return any(each.identity == identity for each in self._stamps.values())

    def refuse_changes(self) -> None:
        """Raise ModelError where a file is gone, or is not what it was when it was opened."""
        for path, stamp in self._stamps.items():
            if path in self._read_once:
                continue
            try:
                now = Stamp.of(path)
            except OSError as error:
                raise ModelError(f"{path}: cannot be read any more: {error.strerror}.") from error
            if now != stamp:
                raise ModelError(f"{path}: was changed while the run read it. Run again when it stays as it is.")


def refuse_files(outputs: Sequence[Path], inputs: Inputs, *, force: bool) -> None:
    """Raise ModelError where outputs may not be written: one is an input, is another output, exists, or has no folder.

    force: whether files that exist, and are no inputs, may be replaced.
    """
    for index, path in enumerate(outputs):
        _refuse_place(path)
        if inputs.holds(path):
            raise ModelError(f"{path}: is an input, which is never written to. Name another output.")
        if any(_is_same(path, other) for other in outputs[:index]):
            raise ModelError(f"{path}: two outputs would be written to it. Name another file for one of them.")
        if os.path.lexists(path) and not force:
            raise ModelError(f"{path}: exists already. Use --force (in Python force=True) to replace it.")


class Transaction:
    """Files written aside, in the folders of their targets; leaving the context removes what was not committed."""

    def __init__(self) -> None:
        self._parts: list[tuple[Path, Path]] = []
        self._last: list[tuple[Path, Path]] = []

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part, _ in (*self._parts, *self._last):
            part.unlink(missing_ok=True)

    def write(self, path: Path, content: Content, *, last: bool = False) -> Path:
        """Write what is to become ``path`` and give the file that holds it until then.

        last: it is renamed after all others, the model after its data. Raises ModelError where there is no room.
        """
        part = self.write_aside(path, content)[0]
        self.promise(part, path, last=last)
        return part

    def write_aside(self, path: Path, content: Content) -> tuple[Path, str]:
        """Write a file beside ``path`` whose name is not settled yet; gives it and its SHA-256 in hexadecimal."""
        hashed = hashlib.sha256()
        part = None
        try:
            handle, name = tempfile.mkstemp(prefix=f".{path.name[:SHOWN_OF_NAME]}.", suffix=".part", dir=path.parent)
            part = Path(name)
            with os.fdopen(handle, "wb") as file:
                for piece in content:
                    data = piece if isinstance(piece, (bytes, memoryview)) else piece.data
                    hashed.update(data)
                    file.write(data)
            part.chmod(0o666 & ~_umask())
        except BaseException as error:
            if part is not None:
                part.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise ModelError(f"{path}: cannot be written: {error.strerror}.") from error
            raise
        return part, hashed.hexdigest()

    def promise(self, part: Path, path: Path, *, last: bool = False) -> None:
        """Have ``commit`` rename what ``write_aside`` wrote to ``path``."""
        (self._last if last else self._parts).append((part, path))

    def commit(self, stale: Iterable[Path] = ()) -> None:
        """Rename all; where one cannot be renamed none is, and what was there before is put back.

        stale: files that nothing needs afterwards; they are removed.
        """
        renamed: list[tuple[Path, Path | None]] = []
        try:
            for part, path in (*self._parts, *self._last):
                renamed.append((path, _kept(part, path)))
            for part, path in (*self._parts, *self._last):
                part.replace(path)
        except BaseException as error:
            for path, old in renamed:
                _put_back(path, old)
            if isinstance(error, OSError):
                raise ModelError(f"{path}: cannot be written: {error.strerror}.") from error
            raise
        finally:
            for _, old in renamed:
                if old is not None:
                    old.unlink(missing_ok=True)
        for path in stale:
            with contextlib.suppress(OSError):
                path.unlink()


# --- inside --------------------------------------------------------------------------------------------


def _kept(part: Path, path: Path) -> Path | None:
    """A second name for what stands at ``path``, to put it back by; None where there is nothing."""
    if not os.path.lexists(path):
        return None
    old = part.with_suffix(".old")
    try:
        os.link(path, old, follow_symlinks=False)
    except (OSError, NotImplementedError):  # a file system without links
        shutil.copy2(path, old, follow_symlinks=False)
    return old


def _put_back(path: Path, old: Path | None) -> None:
    if old is None:
        path.unlink(missing_ok=True)
    else:
        old.replace(path)  # does nothing where both are still one file


def _refuse_place(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero
        raise ModelError(f"{path}: cannot be written: {getattr(error, 'strerror', error)}.") from error
    if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
        raise ModelError(f"{path}: is {kind}, not a file. Name another output.")
    if not path.parent.is_dir():
        raise ModelError(f"{path}: the folder {path.parent} does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise ModelError(f"{path}: cannot be written: the folder {path.parent} is read-only or another user's.")


def _is_same(first: Path, second: Path) -> bool:
    if _resolved(first) == _resolved(second) or _place(first) == _place(second):
        return True
    try:
        return first.samefile(second)
    except OSError:
        return False


def _place(path: Path) -> Path:
    """Where a rename to the path would take effect: of its own links none is followed."""
    return _resolved(path.parent) / path.name


def _resolved(path: Path) -> Path:
    """The path without links; as it is where its links go in circles."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path.absolute()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
