"""Paired moments stage by stage against both models run whole, and what is remembered from model to model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.statistics import paired_stages, watch
from onnxcomp.calibration.statistics.paired import PairedMoments, paired_moments
from onnxcomp.calibration.statistics.paired_stages import Answer, PairedStages
from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.ir.reader import Graph, close_graph, open_graph
from onnxcomp.graph.ir.seeds import seeded
from onnxcomp.graph.provenance import Origin, Reference
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.model import Model, load
from onnxcomp.runtime import Session

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
CHAIN = (
    HEAD
    + """g (float[N,6] x) => (float[N,6] y) {
  a = MatMul(x, w0)
  b = Relu(a)
  c = MatMul(b, w1)
  d = Add(c, b)
  y = MatMul(d, w2)
}"""
)
SHAPES = {"w0": (6, 6), "w1": (6, 6), "w2": (6, 6)}
CASES: dict[str, tuple[str, dict[str, tuple[int, ...]], tuple[int, ...]]] = {
    "chain": (CHAIN, SHAPES, (6,)),
    "convolutions": (
        HEAD
        + """g (float[N,3,9,8] x) => (float[N,5,5,4] y) {
          a = Conv<pads = [1,1,1,1]>(x, w0)
          b = Relu(a)
          c = Conv<group = 4, strides = [2,2], pads = [1,1,1,1]>(b, w1)
          y = Conv(c, w2)
        }""",
        {"w0": (4, 3, 3, 3), "w1": (4, 1, 3, 3), "w2": (5, 4, 1, 1)},
        (3, 9, 8),
    ),
    "shared": (
        HEAD
        + """g (float[N,6] x) => (float[N,6] y) {
          a = MatMul(x, w0)
          b = Relu(a)
          c = MatMul(b, w1)
          d = MatMul(c, w0)
          y = MatMul(d, w2)
        }""",
        SHAPES,
        (6,),
    ),
    "side by side": (
        HEAD
        + """g (float[N,6] x) => (float[N,6] y) {
          a = MatMul(x, w0)
          b = MatMul(x, w1)
          c = Mul(a, b)
          y = MatMul(c, w2)
        }""",
        SHAPES,
        (6,),
    ),
    "recurrent": (
        HEAD
        + """g (float[N,3,6] x) => (float[3,1,N,4] y) {
          t = Transpose<perm = [1, 0, 2]>(x)
          h = MatMul(t, w0)
          y, last = RNN<hidden_size = 4>(h, w1, w2)
        }""",
        {"w0": (6, 6), "w1": (1, 4, 6), "w2": (1, 4, 4)},
        (3, 6),
    ),
    "random": (
        HEAD
        + """g (float[N,6] x) => (float[N,6] y) {
          a = MatMul(x, w0)
          noise = RandomNormalLike(a)
          b = Add(a, noise)
          c = MatMul(b, w1)
          y = MatMul(c, w2)
        }""",
        SHAPES,
        (6,),
    ),
    "optional": (
        HEAD
        + """g (float[N,6] x) => (float[N,6] y) {
          a = MatMul(x, w0)
          held = Optional(a)
          first = OptionalGetElement(held)
          b = Relu(first)
          c = MatMul(b, w1)
          back = OptionalGetElement(held)
          d = Add(back, c)
          y = MatMul(d, w2)
        }""",
        SHAPES,
        (6,),
    ),
}


def model_of(case: str, seed: int = 0) -> Model:
    text, shapes, _ = CASES[case]
    proto = parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32) / 2
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return seeded(load(proto))


def data_of(case: str, folder: Path) -> CalibrationData:
    x = np.random.default_rng(3).standard_normal((11, *CASES[case][2])).astype(np.float32)
    np.savez(folder / "calib.npz", x=x)
    return CalibrationData.open(folder / "calib.npz", Session(model_of(case).to_bytes()).inputs, batch_size=4)


def rough(model: Model, **other: float) -> Graph:
    """Opened, with coarser weights; ``other`` adds to those of a name."""
    graph = open_plain(model)
    for name, constant in constants_by_key(graph).items():
        if name in SHAPES:
            constant.values = (np.round(2 * np.asarray(constant.values)) / 2 + other.get(name, 0)).astype(np.float32)
    return graph


def halved(weight: Weight, before: Array, moments: PairedMoments) -> Answer:
    """An answer that depends on all that is given."""
    change = np.float32(0.01) * moments.cross.sum() / moments.gram.sum()
    return ((np.asarray(weight.values) + before) / 2 + change).astype(np.float32), None, float(moments.gram.sum())


Array = np.ndarray[Any, Any]
asked: list[str] = []


def counted(weight: Weight, before: Array, moments: PairedMoments) -> Answer:
    asked.append(weight.name)
    return halved(weight, before, moments)


def stages_of(
    reference: Reference, graph: Graph, data: CalibrationData, open_session: Any = Session, jobs: int = 1
) -> PairedStages:
    return PairedStages(reference, graph, set(SHAPES), data, open_session, jobs)


def gone_through(stages: PairedStages, graph: Graph, solve: Any = counted) -> dict[str, Answer]:
    """All answers, each taken before the next stage."""
    found: dict[str, Answer] = {}
    for index in range(len(stages.by_stage)):
        for name, answer in stages.solved(index, solve).items():
            assert answer is not None
            found[name] = answer
            constants_by_key(graph)[name].values = answer[0]
    return found


def same(left: dict[str, Answer], right: dict[str, Answer]) -> None:
    assert left.keys() == right.keys()
    for name, answer in left.items():
        other = right[name]
        assert answer is not None and other is not None
        assert np.array_equal(answer[0], other[0]) and answer[2] == other[2]


@pytest.mark.parametrize("case", CASES)
def test_moments_are_those_of_both_models_run_whole(case: str, tmp_path: Path) -> None:
    original, data = model_of(case), data_of(case, tmp_path)
    reference, graph = Reference(original), rough(original)
    seen: dict[str, PairedMoments] = {}

    def noted(weight: Weight, before: Array, moments: PairedMoments) -> Answer:
        seen[weight.name] = moments
        return halved(weight, before, moments)

    stages = stages_of(reference, graph, data)
    for index, names in enumerate(stages.by_stage):
        now = open_graph(close_graph(graph))
        expected = paired_moments(reference, now, [each for each in weights(now) if each.name in names], data)
        for name, answer in stages.solved(index, noted).items():
            assert answer is not None
            constants_by_key(graph)[name].values = answer[0]
            np.testing.assert_allclose(seen[name].gram, expected[name].gram, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(seen[name].cross, expected[name].cross, rtol=1e-4, atol=1e-5)
    assert seen.keys() == set(SHAPES)
    assert stages.is_whole == (case == "optional")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("differs", ["w0", "w1", "w2"])
def test_answers_after_another_model_are_those_without_it(case: str, differs: str, tmp_path: Path) -> None:
    data, answers = data_of(case, tmp_path), []
    for is_second in (True, False):
        original = model_of(case)
        if is_second:
            first = rough(original)
            gone_through(stages_of(Reference(original), first, data), first)
        graph = rough(original, **{differs: 0.25})
        answers.append(gone_through(stages_of(Reference(original), graph, data), graph))
    same(*answers)


def test_is_asked_again_only_from_the_weight_that_differs_on(tmp_path: Path) -> None:
    original, data = model_of("chain"), data_of("chain", tmp_path)
    for differs, expected in ({}, ["w0", "w1", "w2"]), ({}, []), ({"w1": 0.25}, ["w1", "w2"]), ({}, []):
        del asked[:]
        graph = rough(original, **differs)
        gone_through(stages_of(Reference(original), graph, data), graph)
        assert asked == expected


def test_the_original_runs_once_for_all_models(tmp_path: Path) -> None:
    """Of a model that differs from the first weight on, only its own segments run."""
    ran: list[str] = []

    class Counted(Session):
        def run(self, feeds: Any, names: Any = None, **options: Any) -> dict[str, Any]:
            ran.extend(names)
            return super().run(feeds, names, **options)

    original, data = model_of("chain"), data_of("chain", tmp_path)
    batches = math.ceil(data.sample_count / data.batch_size)
    counts = []
    for shift in (0.0, 0.25):
        del ran[:]
        graph = rough(original, w0=shift)
        gone_through(stages_of(Reference(original), graph, data, Counted), graph)
        counts.append([ran.count(name) for name in ("b", "d")])
    whole = 1  # to see how large the tensors are
    assert counts == [[2 * batches + whole, 2 * batches + whole], [batches, batches]]


@pytest.mark.parametrize(("room", "is_together"), [(2**25, True), (1, False)])
def test_the_original_shows_as_many_stages_as_fit_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, is_together: bool
) -> None:
    monkeypatch.setattr(paired_stages, "ROOM_BYTES", room)
    fetched: list[frozenset[str]] = []

    class Counted(Session):
        def run(self, feeds: Any, names: Any = None, **options: Any) -> dict[str, Any]:
            fetched.append(frozenset(names))
            return super().run(feeds, names, **options)

    original, data = model_of("chain"), data_of("chain", tmp_path)
    graph, plain = rough(original), rough(original)
    answers = gone_through(stages_of(Reference(original), graph, data, Counted), graph)
    same(answers, gone_through(stages_of(Reference(model_of("chain")), plain, data), plain))
    to_see_sizes = 1
    assert any({"b", "d"} <= names for names in fetched[to_see_sizes:]) == is_together


def test_columns_on_disk_are_those_in_memory(tmp_path: Path, monkeypatch: Any) -> None:
    data, answers = data_of("convolutions", tmp_path), []
    for room in (2**26, 0):
        monkeypatch.setattr(paired_stages, "kept_bytes", lambda size, room=room: room)
        monkeypatch.setattr("onnxcomp.calibration.statistics.series.SMALL_BYTES", 0)
        original = model_of("convolutions")
        graph = rough(original)
        answers.append(gone_through(stages_of(Reference(original), graph, data), graph))
    same(*answers)


def test_sums_that_do_not_fit_together_are_made_in_turn(tmp_path: Path, monkeypatch: Any) -> None:
    data, answers = data_of("side by side", tmp_path), []
    ran: list[str] = []

    class Counted(Session):
        def run(self, feeds: Any, names: Any = None, **options: Any) -> dict[str, Any]:
            ran.extend(names)
            return super().run(feeds, names, **options)

    for room in (2**26, 1):
        monkeypatch.setattr(paired_stages, "sums_bytes", lambda size, room=room: room)
        del ran[:]
        original = model_of("side by side")
        graph = rough(original)
        answers.append(gone_through(stages_of(Reference(original), graph, data, Counted), graph))
        batches = math.ceil(data.sample_count / data.batch_size)
        assert ran.count("c") == 2 * batches + 1  # no stage before is run again for a second part
    same(*answers)


def test_threads_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LEAST_BYTES", 1)  # so that samples run one by one
    data, answers = data_of("side by side", tmp_path), []
    for jobs in (1, 2, 3):
        original = model_of("side by side")
        graph = rough(original)
        stages = stages_of(Reference(original), graph, data, jobs=jobs)
        assert [len(each) for each in stages.by_stage] == [2, 1]
        answers.append(gone_through(stages, graph, halved))
    same(answers[0], answers[1])
    same(answers[0], answers[2])


def test_the_original_is_seen_in_the_units_of_now(tmp_path: Path) -> None:
    """What w1 reads was doubled and its channels were turned around since: the reference's columns are brought along,
    those that were kept before it, too."""
    original, data = model_of("chain"), data_of("chain", tmp_path)
    turned = np.arange(6)[::-1]
    origin = Origin("b", 2, {1: turned}, np.full((1, 6), 2, np.float32))
    plain = rough(original)
    gone_through(stages_of(Reference(original), plain, data), plain)
    graph = rough(original)
    reference = Reference(original, {"b": origin})
    now = open_graph(close_graph(graph))
    expected = paired_moments(reference, now, [each for each in weights(now) if each.name == "w1"], data)
    seen: dict[str, PairedMoments] = {}

    def noted(weight: Weight, before: Array, moments: PairedMoments) -> Answer:
        seen[weight.name] = moments
        return None

    stages_of(reference, graph, data).solved(1, noted)
    np.testing.assert_allclose(seen["w1"].cross, expected["w1"].cross, rtol=1e-4, atol=1e-5)


def test_weights_whose_inputs_the_reference_does_not_have_are_in_no_stage(tmp_path: Path) -> None:
    original, data = model_of("chain"), data_of("chain", tmp_path)
    proto = parser.parse_model(CASES["chain"][0].replace("b = ", "renamed = ").replace("(b,", "(renamed,"))
    proto.graph.node[3].input[1] = "renamed"
    proto.graph.initializer.extend(original.proto.graph.initializer)
    stages = stages_of(Reference(original), open_plain(load(proto)), data)
    assert stages.by_stage == [["w0"], ["w2"]]
