"""A run in stages against the whole model, watched: the same values at every stage, whatever has changed by then."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.statistics import staged
from onnxcomp.calibration.statistics import watch as watching
from onnxcomp.calibration.statistics.series import Room
from onnxcomp.calibration.statistics.staged import Checkpoints, StagedRun
from onnxcomp.calibration.statistics.watch import in_batches, watch
from onnxcomp.graph.dataflow.segments import cut
from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.ir.reader import Graph, close_graph, open_graph
from onnxcomp.graph.ir.seeds import seeded
from onnxcomp.model import load
from onnxcomp.runtime import Session

CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,6] x) => (float[N,6] y) {
  a = MatMul(x, w0)
  b = Relu(a)
  c = MatMul(b, w1)
  d = Add(c, a)
  e = Tanh(d)
  y = MatMul(e, w2)
}"""
SAMPLE_BYTES = 2 * 6 * 4  # of b and d
STAGES = [["x"], ["b"], ["e"], ["y"]]
CASES = {
    "chain": (CHAIN, STAGES),
    "types": (
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,6] x) => (float[N,6] y) {
          a = MatMul(x, w0)
          half = Cast<to = 10>(a)
          whole = Cast<to = 7>(a)
          shape = Shape(a)
          b = Relu(a)
          c = MatMul(b, w1)
          back = Cast<to = 1>(half)
          again = Cast<to = 1>(whole)
          d = Sum(c, back, again)
          e = Reshape(d, shape)
          y = MatMul(e, w2)
        }""",
        [["x"], ["b", "half"], ["e"], ["y"]],
    ),
    "sequences": (
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,6] x) => (float[N,6] y) {
          a = MatMul(x, w0)
          several = SequenceConstruct(a, x)
          b = Relu(a)
          c = MatMul(b, w1)
          axis = Constant<value_int = 1>()
          one = Constant<value = int64 {0}>()
          first = SequenceAt(several, one)
          e = Add(c, first)
          y = MatMul(e, w2)
        }""",
        [["x"], ["b"], ["e"], ["y"]],
    ),
    "random": (
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,6] x) => (float[N,6] y) {
          a = MatMul(x, w0)
          noise = RandomNormalLike(a)
          b = Add(a, noise)
          c = MatMul(b, w1)
          other = RandomUniformLike(b)
          e = Add(c, other)
          y = MatMul(e, w2)
        }""",
        [["x"], ["b"], ["c", "e"], ["y"]],
    ),
    "branches": (
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,6] x) => (float[N,6] y) {
          a = MatMul(x, w0)
          b = Relu(a)
          sum = ReduceSum<keepdims = 0>(x)
          zero = Constant<value_float = 0.0>()
          positive = Greater(sum, zero)
          c = If (positive) <
            then_branch = one () => (float[N,6] u) { u = MatMul(b, w1) },
            else_branch = two () => (float[N,6] v) { v = Add(a, b) }>
          y = MatMul(c, w2)
        }""",
        [["x"], ["b"], ["c"], ["y"]],
    ),
    "shared": (
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,6] x) => (float[N,6] y) {
          a = MatMul(x, w0)
          b = Relu(a)
          c = MatMul(b, w1)
          d = Relu(c)
          turned = Transpose(w0)
          e = MatMul(d, turned)
          y = MatMul(e, w2)
        }""",
        [["x", "d"], ["b"], ["e"], ["y"]],
    ),
}


def graph_of(text: str) -> Graph:
    proto = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name in ("w0", "w1", "w2"):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((6, 6)).astype(np.float32), name))
    return open_graph(seeded(load(proto)))


def data_of(graph: Graph, folder: Path, x: np.ndarray | None = None) -> CalibrationData:
    x = np.random.default_rng(3).standard_normal((10, 6)).astype(np.float32) if x is None else x
    np.savez(folder / "calib.npz", x=x)
    data = CalibrationData.open(folder / "calib.npz", Session(graph.model.to_bytes()).inputs, batch_size=4)
    return in_batches(graph.model, sorted(every(graph)), data)[0]


@pytest.mark.parametrize(("least", "batches"), [(1, [1] * 10), (3 * SAMPLE_BYTES, [3, 3, 3, 1]), (2**20, [4, 4, 2])])
def test_batches_are_many_where_one_is_worth_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int, batches: list[int]
) -> None:
    """Ten samples are wanted one by one; those of few bytes stay together."""
    monkeypatch.setattr(watching, "LEAST_BYTES", least)
    graph = graph_of(CHAIN)
    np.savez(tmp_path / "calib.npz", x=np.zeros((10, 6), np.float32))
    data = CalibrationData.open(tmp_path / "calib.npz", Session(graph.model.to_bytes()).inputs, batch_size=4)
    found, sizes = in_batches(graph.model, ["b", "d"], data, wanted=10)
    assert [len(each["x"]) for each in found.batches()] == batches
    assert sizes == dict.fromkeys(["b", "d"], found.batch_size * SAMPLE_BYTES // 2)


def every(graph: Graph) -> set[str]:
    return {out.name for node in graph.main.graph.nodes for out in node.outputs}


def changed(graph: Graph, name: str, by: float = 0.1) -> None:
    constants = constants_by_key(graph)
    constants[name].values = (np.asarray(constants[name].values) + np.float32(by)).astype(np.float32)


def staged_run(graph: Graph, stages: list[list[str]], data: CalibrationData, **options: Any) -> StagedRun:
    cuts = cut(graph, stages, options.pop("changes", {"w0": 0, "w1": 1, "w2": 2}))
    room = options.pop("room", None) or Room(2**30, graph.model.scratch)
    open_session, checkpoints = options.pop("open_session", Session), options.pop("checkpoints", None)
    return StagedRun(graph, cuts, data, open_session, room, checkpoints, options.pop("jobs", 1))


def shown(run: StagedRun, index: int, names: list[str]) -> dict[str, list[Any]]:
    found: dict[str, dict[int, Any]] = defaultdict(dict)
    run.show(index, names, lambda name, batch, value: found[name].__setitem__(batch, value))
    return {name: [each[batch] for batch in range(len(each))] for name, each in found.items()}


def watched(graph: Graph, names: list[str], data: CalibrationData) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    watch(close_graph(graph), names, data, lambda name, value: found[name].append(value))
    return found


def same(left: dict[str, list[Any]], right: dict[str, list[Any]], *, exactly: bool = False) -> None:
    assert left.keys() == right.keys()
    for name, values in left.items():
        assert len(values) == len(right[name]) > 0
        for one, other in zip(values, right[name], strict=True):
            if exactly:
                assert np.array_equal(one, other) and one.dtype == other.dtype
            else:
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def in_turn(graph: Graph, run: StagedRun, stages: list[list[str]]) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    """What is shown at each stage, of weights that change one after another."""
    for index, names in enumerate(stages):
        yield index, shown(run, index, names)
        if index < 3:
            changed(graph, f"w{index}")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("room_bytes", [0, 2**30])
def test_shows_what_the_whole_model_holds(case: str, room_bytes: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("onnxcomp.calibration.statistics.series.SMALL_BYTES", 0)
    text, stages = CASES[case]
    graph = graph_of(text)
    data = data_of(graph, tmp_path)
    run = staged_run(graph, stages, data, room=Room(room_bytes, graph.model.scratch))
    for index, found in in_turn(graph, run, stages):
        same(found, watched(graph, stages[index], data))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("jobs", [1, 3])
def test_work_is_done_to_each_value_and_handed_over_in_order(case: str, jobs: int, tmp_path: Path) -> None:
    """Whatever the stage: inputs, what an earlier one left, what its own segments compute."""
    text, stages = CASES[case]
    graph = graph_of(text)
    data = data_of(graph, tmp_path)
    run = staged_run(graph, stages, data, jobs=jobs)
    for index, names in enumerate(stages):
        found: dict[str, list[Any]] = defaultdict(list)
        batches: dict[str, list[int]] = defaultdict(list)

        def see(name: str, batch: int, value: Any, found: Any = found, batches: Any = batches) -> None:
            batches[name].append(batch)
            found[name].append(value)

        run.show(index, names, see, lambda name, batch, value: (name, batch, 2 * np.asarray(value)))
        expected = watched(graph, names, data)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert batches[name] == list(range(len(values)))
            assert [each[:2] for each in found[name]] == [(name, batch) for batch in range(len(values))]
            for one, other in zip(found[name], values, strict=True):
                np.testing.assert_allclose(one[2], 2 * np.asarray(other), rtol=1e-4, atol=1e-5)
        if index < 3:
            changed(graph, f"w{index}")


@pytest.mark.parametrize("case", CASES)
def test_a_stage_that_is_shown_again_is_as_its_constants_are_now(case: str, tmp_path: Path) -> None:
    text, stages = CASES[case]
    graph = graph_of(text)
    data = data_of(graph, tmp_path)
    run = staged_run(graph, stages, data)
    for _ in range(2):
        for index in (3, 1, 2, 0, 3):
            changed(graph, "w0" if index % 2 else "w1")
            same(shown(run, index, stages[index]), watched(graph, stages[index], data))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("differs", ["w0", "w1", "w2"])
def test_going_on_from_a_run_that_began_alike_is_exact(case: str, differs: str, tmp_path: Path) -> None:
    text, stages = CASES[case]
    checkpoints = Checkpoints()
    first = graph_of(text)
    data = data_of(first, tmp_path)
    for _ in in_turn(first, staged_run(first, stages, data, checkpoints=checkpoints), stages):
        pass
    assert checkpoints.by_stretch
    shows = []
    for known in (checkpoints, Checkpoints()):
        graph = graph_of(text)
        changed(graph, differs, by=0.3)
        shows.append(list(in_turn(graph, staged_run(graph, stages, data, checkpoints=known), stages)))
    for (_, one), (_, other) in zip(*shows, strict=True):
        same(one, other, exactly=True)


def test_each_segment_runs_once_and_only_after_what_differs(tmp_path: Path) -> None:
    graph = graph_of(CHAIN)
    data = data_of(graph, tmp_path)
    batches = len(list(data.batches()))
    ran: list[tuple[str, ...]] = []

    class Counted(Session):
        def run(self, feeds: Any, names: Any = None, **options: Any) -> dict[str, Any]:
            ran.append(tuple(names))
            return super().run(feeds, names, **options)

    checkpoints = Checkpoints()
    for _ in in_turn(graph, staged_run(graph, STAGES, data, open_session=Counted, checkpoints=checkpoints), STAGES):
        pass
    assert ran == [each for each in (("a", "b"), ("e",), ("y",)) for _ in range(batches)]
    del ran[:]
    again = graph_of(CHAIN)
    changed(again, "w1", by=0.3)
    run = staged_run(again, STAGES, data, open_session=Counted, checkpoints=checkpoints)
    changed(again, "w0")
    shown(run, 2, ["e"])
    assert ran == [("e",)] * batches


def test_equal_states_are_of_equal_content_up_to_the_stage(tmp_path: Path) -> None:
    graph, other = graph_of(CHAIN), graph_of(CHAIN)
    data = data_of(graph, tmp_path)
    one, two = (staged_run(each, STAGES, data) for each in (graph, other))
    assert [one.state(index) for index in range(4)] == [two.state(index) for index in range(4)]
    changed(other, "w1")
    assert [one.state(index) == two.state(index) for index in range(4)] == [True, True, False, False]
    constants_by_key(other)["w1"].values = np.asarray(constants_by_key(graph)["w1"].values).copy()
    assert one.state(3) == two.state(3)
    renamed = graph_of(CHAIN.replace("Tanh", "Sigmoid"))
    assert staged_run(renamed, STAGES, data).state(2) != one.state(2)


def test_samples_of_other_shapes_run_one_after_another(tmp_path: Path) -> None:
    graph = graph_of(CHAIN)
    folder = tmp_path / "several"
    folder.mkdir()
    for index, rows in enumerate((3, 5, 2)):
        np.savez(folder / f"{index}.npz", x=np.random.default_rng(index).standard_normal((rows, 6)).astype(np.float32))
    data = CalibrationData.open(folder, Session(graph.model.to_bytes()).inputs, batch_size=4)
    run = staged_run(graph, STAGES, data)
    for index, found in in_turn(graph, run, STAGES):
        same(found, watched(graph, STAGES[index], data))


def test_no_more_is_held_in_memory_than_the_room(tmp_path: Path, monkeypatch: Any) -> None:
    graph = graph_of(CHAIN)
    x = np.random.default_rng(3).standard_normal((4000, 6)).astype(np.float32)
    data = data_of(graph, tmp_path, x)
    room, most = Room(60_000, graph.model.scratch), [0]
    take = Room.take

    def counted(self: Room, size: int) -> bool:
        fits = take(self, size)
        most[0] = max(most[0], self.used_bytes)
        return fits

    monkeypatch.setattr("onnxcomp.calibration.statistics.series.SMALL_BYTES", 0)
    monkeypatch.setattr(Room, "take", counted)
    run = staged_run(graph, STAGES, data, room=room)
    for index, found in in_turn(graph, run, STAGES):
        same(found, watched(graph, STAGES[index], data))
    assert 0 < most[0] <= 60_000 < x.nbytes
    del run
    assert room.used_bytes == 0


def test_large_checkpoints_are_not_kept(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(staged, "CHECKPOINT_BYTES", 10 * 6 * 4)  # of one tensor of all samples
    graph, checkpoints = graph_of(CHAIN), Checkpoints()
    run = staged_run(graph, STAGES, data_of(graph, tmp_path), checkpoints=checkpoints)
    shown(run, 3, ["y"])
    assert {each.stage for each in checkpoints.by_stretch.values()} == {0, 2, 3}  # a and b are left after stage 1
