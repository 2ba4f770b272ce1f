"""--input-shape: what is drawn, measured and counted, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from .conftest import Invoke, files_in

TEXT = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[N,3,H,W] image, float[N,5] more) => (float[N,4,A,B] y, float[N,5] z) {
  y = Conv (image, K)
  z = Neg (more)
}
"""
MACS = 4 * 3 * 3 * 3  # of each place that is computed


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each load takes a process of its own: one is enough here."""
    monkeypatch.setattr("onnxcomp.pipeline.costs.LOADS", 1)
    monkeypatch.setattr("onnxcomp.pipeline.costs.MEASURED_S", 0.01)


@pytest.fixture
def open_model(tmp_path: Path) -> Path:
    """A 3 x 3 convolution from 3 to 4 channels on images of any size."""
    model = onnx.parser.parse_model(TEXT)
    kernel = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "K"))
    path = tmp_path / "open.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {"image": rng.standard_normal((80, 3, 6, 6)), "more": rng.standard_normal((80, 5))}
    path = tmp_path / "samples.npz"
    np.savez(path, **{name: each.astype(np.float32) for name, each in arrays.items()})
    return path


def test_inspect_counts_at_the_shape(invoke: Invoke, open_model: Path) -> None:
    content = json.loads(invoke("inspect", open_model, "--input-shape", "image=2,3,12,10", "--json").stdout)
    assert (content["macs"], content["macs_partial"]) == (MACS * 2 * 10 * 8, False)
    assert content["input_shapes"] == {"image": [2, 3, 12, 10]}
    text = invoke("inspect", open_model, "--input-shape", "image=2,3,12,10").stdout
    assert f"{MACS * 160:,} at 2x3x12x10\n" in text


def test_inspect_says_how_open_sizes_can_be_given(invoke: Invoke, open_model: Path) -> None:
    assert "counted as 1: --input-shape says them" in " ".join(invoke("inspect", open_model).stdout.split())


def test_bench_runs_at_the_shape_and_at_sizes_of_the_same_symbol(invoke: Invoke, open_model: Path) -> None:
    args = ("bench", open_model, "--runs", 2, "-q", "--input-shape", "image=2,3,12,10")
    content = json.loads(invoke(*args, "--json").stdout)
    assert content["shapes"] == {"image": [2, 3, 12, 10], "more": [2, 5]}
    assert content["shapes_from"] == "--input-shape"
    assert "at image 2x3x12x10, more 2x5 from --input-shape" in invoke(*args).stdout


def test_bench_says_that_shapes_are_guessed(invoke: Invoke, open_model: Path) -> None:
    text = invoke("bench", open_model, "--runs", 2, "-q").stdout
    assert "guessed: --input-shape says another" in text


def test_latency_is_measured_at_the_shape_and_verified_on_the_data(
    invoke: Invoke, open_model: Path, samples: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxcomp.calibration import CalibrationData

    timed: list[dict[str, np.ndarray]] = []
    own = CalibrationData.timed_sample

    def noted(data: CalibrationData) -> dict[str, np.ndarray]:
        timed.append(own(data))
        return timed[-1]

    monkeypatch.setattr(CalibrationData, "timed_sample", noted)
    args = ("optimize", open_model, "--recipe", "lossless", "--calib-data", samples, "-o", out / "o.onnx", "-q")
    assert invoke(*args, "--input-shape", "image=1,3,9,4").exit_code == 0
    receipt = json.loads((out / "o.receipt.json").read_text())
    assert receipt["data"]["shapes"] == {"image": [1, 3, 9, 4], "more": [1, 5]}
    assert receipt["data"]["shapes_from"] == "--input-shape"
    assert receipt["data"]["verification_samples"] == 40
    first = timed[0]["image"][0]
    # nine rows of a sample that has six, and the first four of its columns
    np.testing.assert_array_equal(first[:, 6:9], first[:, :3])
    assert len(np.unique(first)) == 3 * 6 * 4


def test_random_inputs_are_drawn_at_the_shape(invoke: Invoke, open_model: Path) -> None:
    content = json.loads(invoke("compare", open_model, open_model, "--input-shape", "image=4,3,5,7", "--json").stdout)
    assert content["shapes"] == {"image": [4, 3, 5, 7], "more": [4, 5]}


@pytest.mark.parametrize("command", ["optimize", "bench", "inspect", "compare", "run"])
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("image=1,3,8", "image has 4 dimensions"),
        ("image=1,4,8,8", "got 4 on axis 1"),
        ("imagge=1,3,8,8", "Did you mean image?"),
        ("image=1,3,8,big", "must be NAME=SIZES"),
    ],
)
def test_a_shape_that_the_model_cannot_have_is_wrong_usage(
    invoke: Invoke, open_model: Path, command: str, shape: str, said: str
) -> None:
    names = {"compare": (open_model, open_model), "run": ("quantize-weights", open_model)}.get(command, (open_model,))
    result = invoke(command, *names, "--input-shape", shape)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("onnxcomp: --input-shape: ") and said in line
    assert files_in(open_model.parent) == {"open.onnx"}


def test_a_shape_at_which_the_model_does_not_run_is_one_line(invoke: Invoke, open_model: Path, samples: Path) -> None:
    for data in ((), ("--data", samples)):
        result = invoke("bench", open_model, "--input-shape", "image=1,3,2,2", *data)
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1 and result.stderr.startswith("onnxcomp: ")


def test_a_shape_twice_or_beside_what_has_one_is_wrong_usage(invoke: Invoke, open_model: Path, samples: Path) -> None:
    twice = invoke("bench", open_model, "--input-shape", "more=1,5", "--input-shape", "more=2,5")
    assert twice.exit_code == 2 and "more is given twice" in twice.stderr
    both = invoke("compare", open_model, open_model, "--data", samples, "--input-shape", "more=1,5")
    assert both.exit_code == 2 and "give one of them" in both.stderr
