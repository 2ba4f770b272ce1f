"""Encrypted packed files: the age format (https://age-encryption.org/v1), by the library pyrage.

To recipients, files are streamed both ways: 64 kB at a time, each with a tag, the last one marked. With a passphrase a
file is held in memory, as the library has it. What comes out is looked at only after all of it was found whole.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from onnxcomp.errors import PackError, ParameterError
from onnxcomp.packing.extra import needed

MARK = b"age-encryption.org/v1"
PIECE_BYTES = 2**20
SECRET = "AGE-SECRET-KEY-1"


@dataclass(frozen=True)
class Locks:
    """To whom a file is encrypted: recipients (age1... or an SSH public key), or whoever has a passphrase."""

    recipients: tuple[str, ...] = ()
    passphrase_file: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.recipients) or self.passphrase_file is not None

    def check(self) -> None:
        """Raise ParameterError or PackError, before any work, where that is no lock."""
        if self.recipients and self.passphrase_file is not None:
            raise ParameterError("--encrypt-to and --passphrase-file are two ways to encrypt: give one of them.")
        for each in self.recipients:
            _recipient(each)
        if self.passphrase_file is not None:
            _passphrase(self.passphrase_file)

    def locked(self, content: Iterator[bytes]) -> Iterator[bytes]:
        """The content encrypted, piece by piece."""
        with tempfile.TemporaryFile() as plain, tempfile.TemporaryFile() as made:
            for piece in content:
                plain.write(piece)
            plain.seek(0)
            pyrage = needed("pyrage")
            if self.passphrase_file is not None:
                made.write(pyrage.passphrase.encrypt(plain.read(), _passphrase(self.passphrase_file)))
            else:
                pyrage.encrypt_io(plain, made, [_recipient(each) for each in self.recipients])
            made.seek(0)
            while piece := made.read(PIECE_BYTES):
                yield piece


@dataclass(frozen=True)
class PackKeys:
    """What opens an encrypted file: files of identities (age's, or SSH private keys), or a file with a passphrase."""

    identity_files: tuple[Path, ...] = ()
    passphrase_file: Path | None = None

    def opened(self, file: BinaryIO, *, in_memory: bool) -> BinaryIO:
        """A packed file to read: itself, or what it decrypts to, in memory or in a file without a name.

        Raises PackError where it is encrypted and no key fits, or where it is not what was encrypted.
        """
        is_locked = file.read(len(MARK)) == MARK
        file.seek(0)
        if not is_locked:
            return file
        if not self.identity_files and self.passphrase_file is None:
            raise PackError("it is encrypted: name what opens it by --identity or --passphrase-file.")
        pyrage = needed("pyrage")
        plain = io.BytesIO() if in_memory else tempfile.TemporaryFile()  # noqa: SIM115  (the caller reads from it)
        try:
            if self.passphrase_file is not None:
                plain.write(pyrage.passphrase.decrypt(file.read(), _passphrase(self.passphrase_file)))
            else:
                pyrage.decrypt_io(file, plain, _identities(self.identity_files))
        except pyrage.DecryptError as error:
            raise PackError(f"it cannot be decrypted: {_said(error)}.") from error
        except OSError as error:
            if error.errno is not None:  # of the disk
                raise
            raise PackError("it cannot be decrypted: it was changed or cut short.") from error
        plain.seek(0)
        return plain


# --- inside --------------------------------------------------------------------------------------------


def _said(error: Exception) -> str:
    text = str(error)
    return "no key that was given opens it" if "matching keys" in text else text[:1].lower() + text[1:]


def _recipient(text: str) -> Any:
    pyrage = needed("pyrage")
    kind = pyrage.ssh.Recipient if text.startswith("ssh-") else pyrage.x25519.Recipient
    try:
        return kind.from_str(text)
    except (pyrage.RecipientError, ValueError) as error:
        raise ParameterError(f"--encrypt-to must be age1... or an SSH public key, got {text!r}: {error}.") from error


def _identities(files: Sequence[Path]) -> list[Any]:
    pyrage = needed("pyrage")
    found: list[Any] = []
    for path in files:
        content = path.read_bytes()
        try:
            lines = [each.strip() for each in content.decode().splitlines()]
            own = [pyrage.x25519.Identity.from_str(each) for each in lines if each.startswith(SECRET)]
            found += own or [pyrage.ssh.Identity.from_buffer(content)]
        except (pyrage.IdentityError, ValueError) as error:
            raise PackError(f"{path}: holds no age or SSH identity: {error}.") from error
    return found


def _passphrase(path: Path) -> str:
    """The first line of a file."""
    try:
        lines = path.read_bytes().decode().splitlines()
    except UnicodeDecodeError as error:
        raise ParameterError(f"--passphrase-file: {path} holds no text.") from error
    if not lines or not lines[0]:
        raise ParameterError(f"--passphrase-file: the first line of {path} is empty.")
    return lines[0]
