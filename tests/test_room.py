"""Room for temporary files: asked for beforehand, and said plainly where it runs out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcomp import Recipe, optimize, room
from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass
from onnxcomp.errors import PassError, RoomError
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.model import load
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.pipeline.history.digests import result_digest
from onnxcomp.pipeline.scratch_need import scratch_bytes
from onnxcomp.receipt import file_digest
from onnxcomp.runtime.isolated import read_values, write_values
from onnxcomp.tensors import Scratch, spill

Free = Callable[[int], None]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Free:
    """Have the folder for temporary files be ``tmp_path``, with so many bytes free."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def set_free(count: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=count))

    return set_free


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have whatever is spilled go to a device that is always full."""
    monkeypatch.setattr(Scratch, "new_path", lambda self, suffix: Path("/dev/full"))


def large_model() -> onnx.ModelProto:
    """y = x W with a W that is large enough to be spilled: 256 kB."""
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((256, 256), np.float32), "w")
    graph = onnx.parser.parse_graph("g (float[n, 256] x) => (float[n, 256] y) { y = MatMul(x, w) }")
    graph.initializer.append(weight)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_rule_counts_models() -> None:
    model = load(large_model())
    assert scratch_bytes(model, Recipe.load("lossless")) == model.size_bytes
    for searching in ("small", "default", "fast"):
        assert scratch_bytes(model, Recipe.load(searching)) == 5 * model.size_bytes


def test_lack_of_room_is_refused_before_the_work(free: Free, tmp_path: Path) -> None:
    free(1_299_999)
    told: list[str] = []
    with pytest.raises(RoomError) as caught:
        optimize(large_model(), recipe="small", progress=lambda done, total, what: told.append(what))
    assert str(caught.value) == (
        f"g: the recipe small needs up to 2 MB of temporary files and {tmp_path} has 1 MB free: "
        "set TMPDIR to a folder with 2 MB free."
    )
    assert told == []


def test_just_enough_room_is_enough(free: Free) -> None:
    room.refuse_lack("it", 1000)
    free(1000)
    room.refuse_lack("it", 1000)
    free(999)
    with pytest.raises(RoomError):
        room.refuse_lack("it", 1000)


@pytest.mark.usefixtures("full")
def test_a_full_disk_in_a_pass_says_what_helps(free: Free, tmp_path: Path) -> None:
    free(10**9)
    with pytest.raises(RoomError, match=rf"^no room left in {tmp_path}: set TMPDIR to a folder with 2 MB free.$"):
        optimize(large_model(), recipe=Recipe.load("small"), measure=False)


def test_what_to_come_back_with_is_more_than_was_kept(free: Free, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "one").write_bytes(bytes(3_000_000))
    with pytest.raises(RoomError, match="with 6 MB free"), room.room_told(tmp_path / "kept", 10**6):
        raise room.full(tmp_path)
    with pytest.raises(RoomError, match="with 7 MB free"), room.room_told(tmp_path / "kept", 7 * 10**6):
        raise room.full(tmp_path)


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), room.room_told(tmp_path, 0):
        raise FileNotFoundError(2, "No such file")


def test_a_full_disk_elsewhere_is_not_blamed_on_tmpdir(free: Free, tmp_path: Path) -> None:
    error = OSError(28, "No space left on device", "/somewhere/else/model.onnx")
    assert room.in_words(error, 10**6) == "no room left in /somewhere/else."
    copy = OSError(28, "No space left on device", "/somewhere/model.data", None, str(tmp_path / "copy"))
    assert room.in_words(copy, 10**6) == f"no room left in {tmp_path}: set TMPDIR to a folder with 1 MB free."


@pytest.mark.usefixtures("full")
def test_spilling_to_a_full_disk_says_so_itself() -> None:
    with pytest.raises(OSError) as caught:
        spill(np.zeros(10**6), Scratch())
    assert room.is_full(caught.value)


class FailsForLackOfRoom(Pass):
    effect = Effect(shrinks=("bytes",), exact=Exact.TENSORS)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        raise OSError(28, "No space left on device")


class FailsOtherwise(FailsForLackOfRoom):
    def apply(self, graph: Graph, context: Context) -> Outcome:
        raise OSError(5, "Input/output error")


def test_a_pass_without_room_is_no_broken_pass() -> None:
    with pytest.raises(OSError, match="No space left"):
        apply_pass(load(large_model()), FailsForLackOfRoom(), Context())
    with pytest.raises(PassError, match="fails-otherwise: failed on g"):
        apply_pass(load(large_model()), FailsOtherwise(), Context())


def test_values_come_back_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {
        "matrix": rng.standard_normal((3, 4)).astype(np.float32).T,
        "scalar": np.float64(3.5).reshape(()),
        "none": np.zeros((0, 3), np.int64),
        "flags": rng.random(5) > 0.5,
    }
    write_values(tmp_path, values)
    back = read_values(tmp_path)
    for name, each in values.items():
        np.testing.assert_array_equal(back[name], each)


def test_the_digest_of_a_result_is_that_of_its_file(tmp_path: Path) -> None:
    result = optimize(large_model(), recipe="small", measure=False)
    result.save(tmp_path / "out.onnx")
    assert result_digest(result.model) == file_digest(tmp_path / "out.onnx")
    assert os.path.getsize(tmp_path / "out.onnx") == result.receipt.result["bytes"]
