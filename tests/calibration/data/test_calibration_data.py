"""onnxcomp.calibration: what can be fed, how it is cut and drawn."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.calibration import CalibrationData, Cut, find_cut
from onnxcomp.calibration.data import sources
from onnxcomp.errors import CalibrationError
from onnxcomp.runtime import Session, ValueSpec


def specs(**shapes: tuple[Any, ...]) -> list[ValueSpec]:
    return [ValueSpec(name, "tensor(float)", shape) for name, shape in shapes.items()]


def zeros(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("declared", "given", "cut"),
    [
        ({"x": ("N", 3)}, {"x": (10, 3)}, Cut({"x": 0}, 10)),
        ({"x": (None, 3, None, None)}, {"x": (7, 3, 48, 192)}, Cut({"x": 0}, 7)),
        ({"x": (1, 3)}, {"x": (10, 3)}, Cut({"x": 0}, 10, 1)),
        ({"x": (4, 3)}, {"x": (10, 3)}, Cut({"x": 0}, 8, 4, 2)),
        ({"ids": (1, "sequence")}, {"ids": (1, 128)}, Cut({"ids": 0}, 1, 1)),
        ({"x": ("T", "batch", 5)}, {"x": (9, 20, 5)}, Cut({"x": 1}, 20)),
        (
            {"x": ("batch", "T"), "state": (2, "batch", 64), "rate": ()},
            {"x": (6, 100), "state": (2, 6, 64), "rate": ()},
            Cut({"x": 0, "state": 1}, 6),
        ),
        (
            {"x": (None, None, 5), "h": (1, None, 8)},
            {"x": (9, 20, 5), "h": (1, 20, 8)},
            Cut({"x": 1, "h": 1}, 20),
        ),
        ({"x": ("N", 3), "anchors": (10, 4)}, {"x": (10, 3), "anchors": (10, 4)}, Cut({"x": 0}, 10)),
        ({"x": (1, 5), "h": (2, 1, 8)}, {"x": (30, 5), "h": (2, 30, 8)}, Cut({"x": 0, "h": 1}, 30, 1)),
        ({"x": (), "y": ()}, {"x": (), "y": ()}, Cut({}, 1)),
    ],
)
def test_finds_the_sample_axis(declared: Any, given: Any, cut: Cut) -> None:
    assert find_cut(given, specs(**declared)) == cut


@pytest.mark.parametrize(
    ("declared", "given", "barred", "cut", "is_choice"),
    [
        ({"x": ("s77", "s27", 20)}, {"x": (40, 96, 20)}, {"x": {0}}, Cut({"x": 1}, 96), True),
        ({"x": ("s77", "s27", 20)}, {"x": (40, 96, 20)}, {}, Cut({"x": 0}, 40), True),
        ({"x": ("batch", "T", 20)}, {"x": (40, 96, 20)}, {"x": {0}}, Cut({"x": 1}, 96), True),  # misnamed
        ({"x": (None, 3, None, None)}, {"x": (7, 3, 48, 48)}, {"x": {2, 3}}, Cut({"x": 0}, 7), False),
        ({"x": ("N", "T")}, {"x": (7, 48)}, {"x": {1}}, Cut({"x": 0}, 7), False),
        ({"x": ("T", "B", 5), "m": ("B", "T")}, {"x": (9, 9, 5), "m": (9, 9)}, {"x": {0}}, Cut({"x": 1, "m": 0}, 9),
         False),
        ({"x": ("T", 1, 5)}, {"x": (9, 20, 5)}, {"x": {0}}, Cut({"x": 1}, 20, 1), False),
        ({"x": ("T", 1, 5)}, {"x": (9, 1, 5)}, {"x": {0}}, Cut({}, 1), True),  # one sequence, fed whole
    ],
)  # fmt: skip
def test_no_axis_that_the_model_runs_along_holds_the_samples(
    declared: Any, given: Any, barred: Any, cut: Cut, is_choice: bool
) -> None:
    found = find_cut(given, specs(**declared), barred)
    assert found == cut and found.is_choice == is_choice


@pytest.mark.parametrize(
    ("declared", "given"),
    [
        ({"x": ("N", 3)}, {"x": (10, 4)}),
        ({"x": ("N", 3)}, {"x": (10, 3, 1)}),
        ({"x": ("N", 3, 224, 224)}, {"x": (10, 3, 224, 256)}),
        ({"x": (4, 3)}, {"x": (3, 3)}),
        ({"x": (1, 5), "h": (2, 1, 8)}, {"x": (30, 5), "h": (2, 31, 8)}),
        ({"h": (2, "batch", 8)}, {"h": (3, 10, 8)}),
    ],
)
def test_shapes_that_do_not_fit_are_refused(declared: Any, given: Any) -> None:
    with pytest.raises(CalibrationError, match="has shape"):
        find_cut(given, specs(**declared))


@pytest.mark.parametrize("compressed", [False, True])
def test_large_arrays_are_read_from_disk_and_leave_nothing_in_memory(
    tmp_path: Path, compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "UNPACKED_BYTES", 1000)
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 1000)
    x = np.random.default_rng(0).standard_normal((500, 4096)).astype(np.float32)  # 8 MB
    (np.savez_compressed if compressed else np.savez)(tmp_path / "c.npz", x=x)
    data = CalibrationData.open(tmp_path / "c.npz", specs(x=("N", 4096)))
    held = data.groups[0].load()["x"]
    assert isinstance(held, np.memmap)
    for _ in range(2):  # what was let go is read again
        assert np.array_equal(np.concatenate([feeds["x"] for feeds in data.batches()]), x)
    if sys.platform == "linux":
        assert resident_bytes(held) < 1e6


def resident_bytes(held: np.memmap) -> int:  # type: ignore[type-arg]
    """Of the mapping that an array lies in, what this process holds in memory."""
    address = held.ctypes.data
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, stop = (int(each, 16) for each in first.split("-"))
            inside = start <= address < stop
        elif inside and first == "Rss:":
            return int(line.split()[1]) * 1024
    raise AssertionError("not mapped")


def test_batches_of_large_samples_are_small(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((10, 3, 200, 200), np.float32))  # 480 kB each
    data = CalibrationData.open(tmp_path / "x.npy", specs(x=("N", 3, 200, 200)))
    assert [len(feeds["x"]) for feeds in data.batches()] == [2] * 5


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_is_cut_into_batches(tmp_path: Path, compressed: bool) -> None:
    x = np.arange(50, dtype=np.float32).reshape(25, 2)
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "c.npz", x=x, labels=np.arange(25))
    data = CalibrationData.open(tmp_path / "c.npz", specs(x=("N", 2)), batch_size=10)
    assert data.sample_count == 25 and data.has_labels
    assert [len(feeds["x"]) for feeds in data.batches()] == [10, 10, 5]
    np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in data.batches()]), x)
    assert [batch.labels.tolist() for batch in data.labelled_batches(limit=3)] == [[0, 1, 2]]


def test_a_large_stored_npz_is_mapped_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 100)
    np.savez(tmp_path / "c.npz", x=np.asfortranarray(np.arange(6, dtype=np.float32).reshape(3, 2)))
    data = CalibrationData.open(tmp_path / "c.npz", specs(x=("N", 2)))
    assert isinstance(data.groups[0].load()["x"], np.memmap)
    assert next(data.batches())["x"].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_npy_and_a_folder_of_them(tmp_path: Path) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full((2, 2), i, np.float32))
    one = CalibrationData.open(tmp_path / "1.npy", specs(x=("N", 2)))
    assert next(one.batches())["x"].tolist() == [[1, 1], [1, 1]]
    folder = CalibrationData.open(tmp_path, specs(x=("N", 2)))
    assert [feeds["x"][0, 0] for feeds in folder.batches()] == [0, 1, 2]
    with pytest.raises(CalibrationError, match="holds one array and the model wants: x, y"):
        CalibrationData.open(tmp_path / "1.npy", specs(x=("N", 2), y=("N",)))


def test_onnx_test_data_sets(tmp_path: Path) -> None:
    for i in range(2):
        folder = tmp_path / f"test_data_set_{i}"
        folder.mkdir()
        for k, name in enumerate(["y", "x"]):  # named, so the order of files does not matter
            tensor = numpy_helper.from_array(np.full((1, 2), 10 * i + k, np.float32), name)
            (folder / f"input_{k}.pb").write_bytes(tensor.SerializeToString())
        (folder / "output_0.pb").write_bytes(tensor.SerializeToString())
    data = CalibrationData.open(tmp_path, specs(x=("N", 2), y=("N", 2)))
    assert [(f["x"][0, 0], f["y"][0, 0]) for f in data.batches()] == [(1, 0), (11, 10)]
    one = CalibrationData.open(tmp_path / "test_data_set_1", specs(x=("N", 2), y=("N", 2)))
    assert one.sample_count == 1


def test_function_gives_feeds_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_feeds.py").write_text(
        "import numpy as np\n"
        "def feeds():\n"
        "    for n in (3, 2):\n"
        "        yield {'x': np.full((n, 2), n, np.float64)}\n"
        "number = 3\n"
        "def nothing():\n    return []\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    data = CalibrationData.open("my_feeds:feeds", specs(x=("N", 2)))
    assert sys.path == before
    for _ in range(2):
        shown = [(feeds["x"].dtype.name, feeds["x"].shape) for feeds in data.batches()]
        assert shown == [("float32", (3, 2)), ("float32", (2, 2))]
    for name, said in [
        ("number", "not a function"),
        ("missing", "cannot be imported"),
        ("nothing", "no feeds"),
    ]:
        with pytest.raises(CalibrationError, match=said):
            CalibrationData.open(f"my_feeds:{name}", specs(x=("N", 2)))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (zeros(y=(2, 2)), "lacks x and has y"),
        (zeros(x=(2, 2), y=(2, 2)), "has y, which the model does not"),
        ({"x": np.zeros((2, 2), np.uint8)}, "input x is uint8, the model wants float"),
        (zeros(x=(0, 2)), "holds no samples"),
        ({"x": np.zeros((2, 2), np.float32), "labels": np.zeros(3, int)}, "3 labels for 2 samples"),
        ({"x": np.zeros((2, 2), np.float32), "labels": np.zeros(2)}, "labels must be integers.*float64"),
        ({"x": np.zeros((2, 2), np.float32), "labels": np.array(["a", "b"])}, "labels must be integers"),
        ({"x": np.array([{}, {}], object)}, "not a readable"),
    ],
)
def test_data_that_does_not_fit_is_refused(tmp_path: Path, arrays: Any, said: str) -> None:
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(CalibrationError, match=said):
        CalibrationData.open(tmp_path / "c.npz", specs(x=("N", 2)))


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    (tmp_path / "x.csv").write_text("1,2")
    (tmp_path / "empty").mkdir()
    for name, said in [
        ("bad.npz", "not a readable .npz"),
        ("x.csv", "must be .npz or .npy"),
        ("empty", "holds no"),
        ("none", "does not exist"),
    ]:
        with pytest.raises(CalibrationError, match=said):
            CalibrationData.open(tmp_path / name, specs(x=("N", 2)))


def test_only_safe_casts_happen(tmp_path: Path) -> None:
    inputs = [ValueSpec("x", "tensor(float)", ("N",)), ValueSpec("i", "tensor(int32)", ("N",))]
    np.savez(tmp_path / "c.npz", x=np.ones(2), i=np.ones(2, np.int64))
    feeds = next(CalibrationData.open(tmp_path / "c.npz", inputs).batches())
    assert (feeds["x"].dtype, feeds["i"].dtype) == (np.float32, np.int32)
    np.savez(tmp_path / "c.npz", x=np.ones(2), i=np.full(2, 2**40))
    with pytest.raises(CalibrationError, match="beyond int32"):
        next(CalibrationData.open(tmp_path / "c.npz", inputs).batches())


def session(text: str) -> Session:
    return Session(onnx.parser.parse_model(text).SerializeToString())


def test_a_choice_of_axis_is_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.ones((40, 96, 3), np.float32), rate=np.float32(1))
    declared = specs(x=("s77", "s27", 3), rate=())
    data = CalibrationData.open(tmp_path / "c.npz", declared, not_samples={"x": frozenset({0})})
    assert data.axes_in_words == "samples: axis 1 of x (96)"
    assert data.notes == (data.axes_in_words,)


def test_axes_are_known_but_not_said_where_there_was_no_choice(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.ones((9, 3), np.float32), h=np.ones((2, 9, 3), np.float32))
    data = CalibrationData.open(tmp_path / "c.npz", specs(x=("N", 3), h=(2, "N", 3)))
    assert data.axes_in_words == "samples: axis 0 of x (9), axis 1 of h"
    assert data.notes == ()


def test_falls_back_to_one_sample_where_the_model_runs_on_no_more(tmp_path: Path) -> None:
    model = session(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => (float[M] y)'
        " <int64[1] s = {2}> { y = Reshape(x, s) }"
    )
    np.save(tmp_path / "x.npy", np.ones((5, 2), np.float32))
    data = CalibrationData.open(tmp_path / "x.npy", model.inputs, run=model.run)
    assert [len(feeds["x"]) for feeds in data.batches()] == [1] * 5
    assert "one sample at a time" in data.notes[0]


def test_feeds_whole_what_cannot_be_cut(tmp_path: Path) -> None:
    model = session(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[K] x) => (float[M] y)'
        " <int64[2] s = {3, 2}> { y = Reshape(x, s) }"
    )
    np.save(tmp_path / "x.npy", np.ones(6, np.float32))
    data = CalibrationData.open(tmp_path / "x.npy", model.inputs, run=model.run)
    assert [len(feeds["x"]) for feeds in data.batches()] == [6]
    np.save(tmp_path / "x.npy", np.ones(7, np.float32))
    with pytest.raises(CalibrationError, match="does not run"):
        CalibrationData.open(tmp_path / "x.npy", model.inputs, run=model.run)


def test_random_inputs_find_sizes_that_run() -> None:
    model = session(
        '<ir_version: 8, opset_import: ["" : 17]>'
        " g (float[N, C, H, W] x, int64[N, S] ids, bool[N, S] attention_mask)"
        " => (float[N, A] y, float[N, S] z) <int64[2] a = {12288, 2}, int64[1] b = {50}> {"
        " w = ConstantOfShape(a) table = ConstantOfShape(b)"
        " f = Flatten(x) y = MatMul(f, w) z = Gather(table, ids) }"
    )
    # 3 x 64 x 64 = 12288 and ids below 50: other sizes and larger ids do not run.
    data = CalibrationData.random(model.inputs, seed=1, run=model.run)
    feeds = list(data.batches())
    assert data.is_random and len(feeds) == 8
    assert feeds[0]["x"].shape == (2, 3, 64, 64)
    assert feeds[0]["ids"].shape == feeds[0]["attention_mask"].shape == (2, 16)
    assert feeds[0]["attention_mask"].all()
    again = CalibrationData.random(model.inputs, seed=1, run=model.run)
    np.testing.assert_array_equal(feeds[3]["x"], list(again.batches())[3]["x"])
    assert data.split() == (data, data)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("w = ConstantOfShape(a) y = MatMul(x, w)", (64,)),
        ("k = ConstantOfShape(b) y = Conv(x, k)", (3, 224, 224)),
        ("t = Transpose<perm = [2, 0, 1]>(x) y = ReduceMax(t)", (16, 16)),
        ("y = Relu(x)", ()),
    ],
)
def test_inputs_of_unknown_rank_are_drawn_in_several(body: str, shape: tuple[int, ...]) -> None:
    constants = "int64[2] a = {64, 2}, int64[4] b = {4, 3, 3, 3}"
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) <{constants}> {{ {body} }}'
    )
    for each in (*proto.graph.input, *proto.graph.output):
        each.type.tensor_type.ClearField("shape")
    model = Session(proto.SerializeToString())
    data = CalibrationData.random(model.inputs, run=model.run)
    assert {feeds["x"].shape[1:] for feeds in data.batches()} == {shape}


def test_random_inputs_that_never_run_are_an_error() -> None:
    model = session(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, K] x) => (float[N, 2] y)'
        " <int64[2] a = {1234, 2}> { w = ConstantOfShape(a) y = MatMul(x, w) }"
    )
    with pytest.raises(CalibrationError, match="give data"):
        CalibrationData.random(model.inputs, run=model.run)


def test_models_without_inputs_have_one_empty_batch() -> None:
    assert [dict(feeds) for feeds in CalibrationData.random([], run=lambda feeds: None).batches()] == [{}] * 8
