"""Encrypted packed files: opened by the right key, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxcomp.errors import PackError, ParameterError
from onnxcomp.packing.encryption import MARK, Locks, PackKeys
from onnxcomp.packing.packer import pack
from onnxcomp.packing.session import open_session
from onnxcomp.packing.unpacker import unpack
from tests.packing.test_round_trip import arrays, with_tensors

pyrage = pytest.importorskip("pyrage")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a pair of keys, and the model encrypted to them."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "m.onnx").write_bytes(with_tensors(*arrays().values()).SerializeToString())
    identity = pyrage.x25519.Identity.generate()
    (folder / "key").write_text(f"# a comment, as age-keygen writes it\n{identity}\n")
    (folder / "other").write_text(f"{pyrage.x25519.Identity.generate()}\n")
    (folder / "phrase").write_text("correct horse\n")
    pack(folder / "m.onnx", folder / "m.onnxp", locks=Locks((str(identity.to_public()),)))
    return folder


def key(folder: Path, name: str = "key") -> PackKeys:
    return PackKeys((folder / name,))


def test_the_recipient_opens_it(folder: Path, tmp_path: Path) -> None:
    content = (folder / "m.onnxp").read_bytes()
    assert content.startswith(MARK)
    assert b"ONNXP" not in content
    unpack(folder / "m.onnxp", tmp_path / "m.onnx", keys=key(folder))
    assert (tmp_path / "m.onnx").read_bytes() == (folder / "m.onnx").read_bytes()


def test_a_session_opens_it_without_a_file_on_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr("tempfile.tempdir", None)
    session = open_session(folder / "m.onnxp", identities=[folder / "key"])
    assert session.run({"x": np.ones(1, np.float32)})["y"] == 1


def test_nothing_else_opens_it_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    wrong = {"is encrypted": PackKeys(), "no key": key(folder, "other"), "holds no": key(folder, "phrase")}
    for told, keys in wrong.items():
        with pytest.raises(PackError, match=told):
            unpack(folder / "m.onnxp", tmp_path / "m.onnx", keys=keys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [0.02, 0.3, 0.7, 0.999])
def test_a_changed_or_missing_byte_is_told_and_nothing_is_written(folder: Path, tmp_path: Path, place: float) -> None:
    content = (folder / "m.onnxp").read_bytes()
    at = int(len(content) * place)
    for changed in (content[:at], content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], content + b"x"):
        (tmp_path / "b.onnxp").write_bytes(changed)
        with pytest.raises(PackError) as told:
            unpack(tmp_path / "b.onnxp", tmp_path / "m.onnx", keys=key(folder))
        assert "\n" not in str(told.value)
    assert [each.name for each in tmp_path.iterdir()] == ["b.onnxp"]


def test_a_passphrase_opens_what_it_closed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phrase = folder / "phrase"
    pack(folder / "m.onnx", tmp_path / "m.onnxp", locks=Locks(passphrase_file=phrase))
    unpack(tmp_path / "m.onnxp", tmp_path / "m.onnx", keys=PackKeys(passphrase_file=phrase))
    assert (tmp_path / "m.onnx").read_bytes() == (folder / "m.onnx").read_bytes()
    (tmp_path / "wrong").write_text("battery staple")
    with pytest.raises(PackError, match="decrypt"):
        unpack(tmp_path / "m.onnxp", tmp_path / "n.onnx", keys=PackKeys(passphrase_file=tmp_path / "wrong"))


def test_what_is_no_lock_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for locks in (
        Locks(("age1nonsense",)), Locks(("ssh-nonsense",)), Locks(passphrase_file=tmp_path / "empty"),
        Locks((str(pyrage.x25519.Identity.generate().to_public()),), folder / "phrase"),
    ):  # fmt: skip
        with pytest.raises(ParameterError):
            pack(folder / "m.onnx", tmp_path / "m.onnxp", locks=locks)
