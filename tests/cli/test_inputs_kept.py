"""No option of any command writes to a file that the run reads, and outputs are different files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

from .conftest import Invoke, files_in, small_model
from .test_errors import refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model, its external data under the name of a receipt too, links to them, and calibration data."""
    made = tmp_path / "run"
    made.mkdir()
    for name, location in (("net", "net.bin"), ("odd", "out.receipt.json")):
        model = small_model()
        external_data_helper.convert_model_to_external_data(model, location=location, size_threshold=0)
        onnx.save(model, str(made / f"{name}.onnx"))
    np.savez(made / "calib.npz", x=np.zeros((80, 16), np.float32))
    (made / "feeds.py").write_text("def all(): ...")
    (made / "soft.onnx").symlink_to("net.bin")
    os.link(made / "net.bin", made / "hard.onnx")
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


TO_AN_INPUT = {
    "the model": ("optimize", "net.onnx", "-o", "net.onnx"),
    "its data": ("optimize", "net.onnx", "-o", "net.bin"),
    "its data by the report": ("optimize", "net.onnx", "-o", "out.onnx", "--report", "net.bin"),
    "its data by the receipt": ("optimize", "odd.onnx", "-o", "out.onnx"),
    "its data by a symbolic link": ("optimize", "net.onnx", "-o", "soft.onnx"),
    "its data by a hard link": ("optimize", "net.onnx", "-o", "hard.onnx"),
    "its data by expand": ("expand", "net.onnx", "-o", "net.bin"),
    "its data by run": ("run", "strip-metadata", "net.onnx", "-o", "net.bin"),
    "the calibration data": ("optimize", "net.onnx", "--calib-data", "calib.npz", "-o", "calib.npz"),
    "calibration data in a folder": (
        "optimize", "net.onnx", "--calib-data", ".", "-o", "out.onnx", "--report", "calib.npz",
    ),
    "sequences": ("optimize", "net.onnx", "--calib-data", "calib.npz", "--sequence-axis", "0", "-o", "calib.npz"),
    "a module of functions": ("optimize", "net.onnx", "--calib-data", "feeds:all", "-o", "feeds.py"),
    "a module of sequences": (
        "optimize", "net.onnx", "--calib-data", "feeds:all", "--sequence-axis", "1", "-o", "feeds.py",
    ),
    "the recipe": ("optimize", "net.onnx", "--recipe", "calib.npz", "-o", "calib.npz"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TO_AN_INPUT)
def test_an_input_is_refused_as_an_output_even_with_force(
    invoke: Invoke, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = contents(folder)
    refused(invoke(*TO_AN_INPUT[kind], "--force", "-q"), "never written to")
    assert contents(folder) == before


@pytest.mark.parametrize("report", ["out.onnx", "out.receipt.json", "../run/out.onnx"])
def test_two_outputs_in_one_file_are_refused(
    invoke: Invoke, report: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = contents(folder)
    (folder / "out.receipt.json").unlink()
    result = invoke("optimize", "net.onnx", "-o", "out.onnx", "--report", report, "-q")
    refused(result, "two outputs")
    assert contents(folder).keys() == before.keys() - {"out.receipt.json"}


@pytest.mark.usefixtures("unmeasured")
def test_a_receipt_that_cannot_be_written_leaves_the_old_set(
    invoke: Invoke, model_file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxcomp.receipt import Receipt

    arguments = ("optimize", model_file, "--recipe", "lossless", "-o", out / "o.onnx", "--report", out / "p.html", "-q")
    assert invoke(*arguments).exit_code == 0
    before = contents(out)

    def full(self: Receipt) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Receipt, "to_json", full)
    refused(invoke(*arguments, "--force", "--seed", "1"), "no room left")
    assert contents(out) == before


def test_a_name_too_long_for_the_receipt_is_refused_at_once(invoke: Invoke, model_file: Path, out: Path) -> None:
    refused(invoke("optimize", model_file, "-o", out / f"{'n' * 245}.onnx"), "too long")
    assert files_in(out) == set()


@pytest.mark.usefixtures("unmeasured")
def test_calibration_data_that_change_during_the_run_end_it(
    invoke: Invoke, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxcomp.pipeline import api
    from onnxcomp.pipeline.run import Run

    execute = api.execute

    def rewriting(run: Run) -> None:
        execute(run)
        np.savez(folder / "calib.npz", x=np.zeros((10, 16), np.float32))

    monkeypatch.setattr(api, "execute", rewriting)
    result = invoke(
        "optimize", folder / "net.onnx", "--recipe", "lossless", "--calib-data", folder / "calib.npz",
        "-o", out / "o.onnx", "-q",
    )  # fmt: skip
    refused(result, "calib.npz", "was changed")
    assert files_in(out) == set()


def test_files_that_the_run_does_not_read_may_be_replaced(
    invoke: Invoke, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxcomp.cli.running import job

    monkeypatch.chdir(folder)
    monkeypatch.setattr(job, "optimize", lambda *args, **kwargs: pytest.fail("it came so far"))
    with pytest.raises(pytest.fail.Exception, match="it came so far"):
        invoke("optimize", "net.onnx", "-o", "calib.npz", "--force")
