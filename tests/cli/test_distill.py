"""onnxcomp distill: a student, given or made of the teacher, gives nearly what the teacher does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import scipy.special
from onnx import numpy_helper

from onnxcomp.runtime import Session

from .conftest import Invoke, files_in, small_model

pytestmark = pytest.mark.usefixtures("unmeasured")


@pytest.fixture
def student_file(tmp_path: Path) -> Path:
    """The teacher with other weights in its last layer."""
    proto = small_model()
    last = proto.graph.initializer[2]
    values = numpy_helper.to_array(last)
    noise = np.random.default_rng(5).standard_normal(values.shape).astype(np.float32)
    last.CopyFrom(numpy_helper.from_array(values + 0.5 * noise, last.name))
    path = tmp_path / "student.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def training_file(tmp_path: Path) -> Path:
    """2,000 inputs without labels."""
    path = tmp_path / "training.npz"
    np.savez(path, x=np.random.default_rng(2).standard_normal((2000, 16)).astype(np.float32))
    return path


def apart(teacher: Path, student: Path) -> float:
    """The mean divergence (KL) of the classes' probabilities on samples that neither has seen."""
    samples = np.random.default_rng(9).standard_normal((500, 16)).astype(np.float32)
    logits = [
        np.asarray(Session(path.read_bytes()).run({"x": samples})["y"], np.float64) for path in (teacher, student)
    ]
    one, other = (each - scipy.special.logsumexp(each, axis=1, keepdims=True) for each in logits)
    return float((np.exp(one) * (one - other)).sum(axis=1).mean())


def test_a_student_comes_near_its_teacher(
    invoke: Invoke, model_file: Path, student_file: Path, calibration_file: Path, training_file: Path, out: Path
) -> None:
    path = out / "s.onnx"
    result = invoke(
        "distill",
        model_file,
        student_file,
        "--calib-data",
        calibration_file,
        "--train-data",
        training_file,
        "-o",
        path,
        "--epochs",
        20,
    )
    assert result.exit_code == 0, result.stderr
    assert apart(model_file, path) < 0.05 * apart(model_file, student_file)
    assert "no limit" in result.stdout


def test_a_narrow_student_is_nearer_than_one_that_is_only_cut(
    invoke: Invoke, model_file: Path, calibration_file: Path, training_file: Path, out: Path
) -> None:
    trained, cut = out / "trained.onnx", out / "cut.onnx"
    data = ("--calib-data", calibration_file)
    result = invoke(
        "distill",
        model_file,
        "--student",
        "width=0.5",
        *data,
        "--train-data",
        training_file,
        "-o",
        trained,
        "--epochs",
        20,
    )
    assert result.exit_code == 0, result.stderr
    assert (
        invoke("run", "prune-channels", model_file, "--ratio", 0.5, "--max-drop", "none", *data, "-o", cut).exit_code
        == 0
    )
    kept = next(each for each in onnx.load(trained).graph.initializer if each.name == "W1")
    assert kept.dims[0] == 32
    assert apart(model_file, trained) < 0.7 * apart(model_file, cut)


def test_samples_are_mixed_on_request(
    invoke: Invoke, model_file: Path, student_file: Path, calibration_file: Path, training_file: Path, out: Path
) -> None:
    path, data = out / "s.onnx", ("--calib-data", calibration_file, "--train-data", training_file)
    result = invoke("distill", model_file, student_file, *data, "-o", path, "--epochs", 1, "--mixup", 0.5)
    assert result.exit_code == 0, result.stderr
    assert '"mixup": 0.5' in path.with_suffix(".receipt.json").read_text()
    assert apart(model_file, path) < apart(model_file, student_file)


def test_a_limit_is_obeyed(invoke: Invoke, model_file: Path, calibration_file: Path, out: Path) -> None:
    path = out / "s.onnx"
    result = invoke(
        "distill", model_file, "--student", "width=0.1", "--calib-data", calibration_file, "-o", path, "--epochs", 1,
        "--max-drop", "0.0001",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert apart(model_file, path) < 1e-9  # the cut was taken back


def test_wants_samples(invoke: Invoke, model_file: Path) -> None:
    result = invoke("distill", model_file, "--student", "width=0.5")
    assert result.exit_code == 2
    assert "--calib-data" in result.stderr
    assert files_in(model_file.parent) == {"net.onnx"}


@pytest.mark.parametrize("options", [(), ("student.onnx", "--student", "width=0.5")])
def test_wants_a_student_or_a_shape(
    invoke: Invoke, model_file: Path, training_file: Path, options: tuple[str, ...]
) -> None:
    result = invoke("distill", model_file, *options, "--calib-data", training_file)
    assert result.exit_code == 2
    assert "one of both" in result.stderr
    assert files_in(model_file.parent) == {"net.onnx"}
