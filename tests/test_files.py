"""Inputs stay as they are; outputs appear together or not at all, whatever interrupts their writing."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcomp import model as model_module
from onnxcomp.errors import ModelError
from onnxcomp.files import Inputs, Transaction, refuse_files
from onnxcomp.model import load, save
from onnxcomp.tensors import is_external, reference_of

from .test_model import linear_model

ROOT = Path(__file__).parents[1]


def names_in(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def write_three(folder: Path, text: bytes) -> None:
    with Transaction() as outputs:
        outputs.write(folder / "model", [text], last=True)
        outputs.write(folder / "receipt", [text])
        outputs.write(folder / "page", [text])
        outputs.commit()


def test_files_of_a_transaction_appear_together(tmp_path: Path) -> None:
    with Transaction() as outputs:
        outputs.write(tmp_path / "a", [b"one", np.arange(2, dtype=np.uint8)])
        outputs.write(tmp_path / "b", [b"two"])
        assert not {"a", "b"} & names_in(tmp_path)
        outputs.commit()
    assert names_in(tmp_path) == {"a", "b"}
    assert (tmp_path / "a").read_bytes() == b"one\x00\x01"


@pytest.mark.parametrize("failing", [1, 2, 3])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_rename_that_fails_puts_the_old_set_back(
    tmp_path: Path, failing: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_three(tmp_path, b"old")
    (tmp_path / "page").unlink()  # one of them is new
    replace, calls = Path.replace, itertools.count(1)

    def sometimes(self: Path, target: Path) -> Path:
        if next(calls) == failing:
            raise error
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", sometimes)
    with pytest.raises((ModelError, KeyboardInterrupt)):
        write_three(tmp_path, b"new")
    assert names_in(tmp_path) == {"model", "receipt"}
    assert {each.read_bytes() for each in tmp_path.iterdir()} == {b"old"}


def test_a_part_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    def content() -> object:
        yield b"some"
        raise OSError(28, "No space left on device")

    with pytest.raises(ModelError, match="No space left"), Transaction() as outputs:
        outputs.write(tmp_path / "a", [b"one"])
        outputs.write(tmp_path / "b", content())  # type: ignore[arg-type]
    assert names_in(tmp_path) == set()


def test_inputs_are_known_through_links_of_either_kind(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("mine")
    (tmp_path / "soft").symlink_to("source")
    os.link(source, tmp_path / "hard")
    inputs = Inputs([source])
    for name in ("source", "soft", "hard"):
        with pytest.raises(ModelError, match="never written to"):
            refuse_files([tmp_path / name], inputs, force=True)
    refuse_files([tmp_path / "other"], inputs, force=False)


def test_outputs_are_different_files(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a")
    for other in (tmp_path / "a", tmp_path / ".." / tmp_path.name / "a", tmp_path / "link"):
        with pytest.raises(ModelError, match="two outputs"):
            refuse_files([tmp_path / "a", other], Inputs(), force=True)


@pytest.mark.parametrize(("name", "said"), [("x" * 300, "too long"), ("", "is a folder"), ("no/x", "does not exist")])
def test_what_no_file_can_be_called_is_refused_before_any_work(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        refuse_files([tmp_path / name], Inputs(), force=True)


def test_a_folder_that_may_not_be_written_to_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_files([tmp_path / "o.onnx"], Inputs(), force=True)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # to root, all but what is mounted so
    with pytest.raises(ModelError, match="read-only"):
        refuse_files([tmp_path / "o.onnx"], Inputs(), force=True)


def test_devices_are_not_replaced() -> None:
    with pytest.raises(ModelError, match="is a device"):
        refuse_files([Path("/dev/null")], Inputs(), force=True)


def test_inputs_that_changed_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"1")
    inputs = Inputs([path])
    inputs.refuse_changes()
    path.write_bytes(b"22")
    with pytest.raises(ModelError, match="data: was changed"):
        inputs.refuse_changes()
    path.unlink()
    with pytest.raises(ModelError, match="data: cannot be read any more"):
        inputs.refuse_changes()


# --- models ---------------------------------------------------------------------------------------------


def with_data(folder: Path, seed: int) -> Path:
    """A model of 16 kB in a file of external data."""
    path = folder / f"in{seed}.onnx"
    weight = np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32)
    onnx.save(linear_model(weight), path, save_as_external_data=True, location=f"in{seed}.bin", size_threshold=0)
    return path


def referred(path: Path) -> set[str]:
    proto = onnx.load(path, load_external_data=False)
    return {reference_of(each)["location"] for each in proto.graph.initializer if is_external(each)}


def test_a_save_in_the_place_of_another_removes_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [load(with_data(tmp_path, seed)) for seed in (1, 2)]
    out = tmp_path / "out" / "o.onnx"
    out.parent.mkdir()
    monkeypatch.setattr(model_module, "INLINE_LIMIT_BYTES", 1)
    (out.parent / f"o.onnx.{'0' * 12}.data").touch()  # as a run leaves it that is killed before it is done
    (out.parent / "other.onnx.data").touch()
    for model in models:
        files = save(model, out, force=True)
        assert names_in(out.parent) - {"other.onnx.data"} == {each.name for each in files} == {"o.onnx"} | referred(out)
    monkeypatch.undo()
    save(models[0], out, force=True)
    assert names_in(out.parent) == {"o.onnx", "other.onnx.data"}


def test_data_that_an_input_refers_to_are_not_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "INLINE_LIMIT_BYTES", 1)
    first = save(load(with_data(tmp_path, 1)), tmp_path / "o.onnx")
    (tmp_path / "kept.onnx").write_bytes(first[0].read_bytes())
    with pytest.raises(ModelError, match="belongs to the input"):
        save(load(tmp_path / "kept.onnx"), tmp_path / "o.onnx", force=True)
    assert first[1].exists()


def test_small_external_data_may_be_cut_short_while_a_run_reads_them(tmp_path: Path) -> None:
    path = with_data(tmp_path, 1)
    model = load(path)
    before = model.read(model.proto.graph.initializer[0]).copy()
    (tmp_path / "in1.bin").write_bytes(b"")
    assert np.array_equal(model.read(model.proto.graph.initializer[0]), before)
    with pytest.raises(ModelError, match=r"in1\.bin: was changed"):
        save(model, tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from onnxcomp import model
from onnxcomp.model import load, save
model.INLINE_LIMIT_BYTES = 1
replace, calls = Path.replace, []
def killing(self, target):
    calls.append(target)
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = killing
save(load(sys.argv[1]), sys.argv[2], force=True)
"""


@pytest.mark.parametrize("at", [1, 2])
def test_a_kill_between_two_renames_leaves_the_old_model_with_its_data(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = with_data(tmp_path, 1), with_data(tmp_path, 2)
    out = tmp_path / "o.onnx"
    with monkeypatch.context() as patched:
        patched.setattr(model_module, "INLINE_LIMIT_BYTES", 1)
        save(load(old), out)
    command = [sys.executable, "-c", KILLED, str(new), str(out), str(at)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert np.array_equal(weight_of(out), weight_of(old))


def weight_of(path: Path) -> np.ndarray:
    return onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0])
