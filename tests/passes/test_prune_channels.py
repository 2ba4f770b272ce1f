"""prune-channels: which channels go, how many of each group, and that what is left makes up for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context
from onnxcomp.errors import ParameterError
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.report.macs import count_macs
from onnxcomp.model import Model, load
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from tests.passes.exactly import Rewrite, floats, model, rewrite

MLP = """g (float[N, 12] x) => (float[N, 4] y) {
    a = Gemm(x, w0, b0) h = Relu(a) c = Gemm(h, w1, b1) i = Relu(c) y = Gemm(i, w2, b2) }"""
SHAPES = {"w0": (12, 16), "b0": (16,), "w1": (16, 10), "b1": (10,), "w2": (10, 4), "b2": (4,)}
CONVS = """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w0) h = Relu(a) c = Conv <pads = [1, 1, 1, 1]> (h, w1, b1) s = Add(c, h)
    i = Relu(s) p = GlobalAveragePool(i) f = Flatten(p) y = Gemm <transB = 1> (f, w2, b2) }"""
CONV_SHAPES = {"w0": (8, 3, 3, 3), "w1": (8, 8, 3, 3), "b1": (8,), "w2": (5, 8), "b2": (5,)}


def built(body: str, shapes: dict[str, tuple[int, ...]], **values: np.ndarray) -> onnx.ModelProto:
    proto = model(body)
    for seed, (name, shape) in enumerate(shapes.items()):
        held = values.get(name, floats(*shape, seed=seed) / np.sqrt(max(1, int(np.prod(shape[1:])))))
        proto.graph.initializer.append(numpy_helper.from_array(held.astype(np.float32), name))
    return proto


def context(proto: onnx.ModelProto, folder: Path, samples: np.ndarray) -> Context:
    np.savez(folder / "calib.npz", x=samples)
    data = CalibrationData.open(folder / "calib.npz", Session(load(proto).to_bytes()).inputs)
    return Context(calibration=data)


def inputs(*shape: int, seed: int = 1) -> np.ndarray:
    """Samples whose elements depend on each other, as those of pictures do."""
    width = int(np.prod(shape[1:]))
    mixed = floats(shape[0], max(2, width // 3), seed=seed) @ floats(max(2, width // 3), width, seed=99)
    return (mixed.reshape(shape) / np.sqrt(width / 3) + 0.2 * floats(*shape, seed=seed + 1)).astype(np.float32)


def distance(done: Rewrite, samples: np.ndarray) -> float:
    wanted, got = (Session(each.to_bytes()).run({"x": samples})["y"] for each in (done.before, done.after))
    return float(np.square(np.asarray(got) - wanted).sum() / np.square(wanted).sum())


def floats_of(proto: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(each for each in proto.graph.initializer if each.name == name))


def macs(of: Model) -> int:
    return sum(each.count for each in count_macs(open_graph(of)).values() if each is not None)


def test_a_quarter_of_the_units_goes_with_all_that_makes_and_reads_them() -> None:
    done = rewrite(built(MLP, SHAPES), "prune-channels", ratio=0.25, even=True)
    assert {name: done.initializer(name).shape for name in SHAPES} == {
        "w0": (12, 12), "b0": (12,), "w1": (12, 8), "b1": (8,), "w2": (8, 4), "b2": (4,),
    }  # fmt: skip
    assert [each.name for each in done.outcome.changed] == ["a", "c"]
    assert done.skipped("y") == "it is an output of its graph"


def test_without_data_the_rows_of_least_norm_go_and_others_stay_as_they_are() -> None:
    weights = floats(12, 16, seed=3)
    weights[:, [2, 5, 11, 13]] *= 1e-3
    done = rewrite(built(MLP, SHAPES, w0=weights), "prune-channels", ratio=0.25, even=True, importance="l2")
    np.testing.assert_array_equal(done.initializer("w0"), np.delete(weights, [2, 5, 11, 13], axis=1))


@pytest.mark.parametrize("importance", ["l1", "l2", "median"])
def test_every_importance_drops_units_that_make_nothing(importance: str) -> None:
    """To the median they are like each other, and so least missed."""
    weights = floats(12, 16, seed=3)
    weights[:, :5] = 0
    done = rewrite(built(MLP, SHAPES, w0=weights), "prune-channels", ratio=0.2, even=True, importance=importance)
    assert (np.abs(done.initializer("w0")).sum(axis=0) == 0).sum() == 2


def test_the_scale_of_a_batch_normalization_tells_what_goes() -> None:
    proto = model("""g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y) {
        a = Conv(x, w) n = BatchNormalization(a, scale, shift, mean, var) h = Relu(n) y = Conv(h, v) }""")
    scale = np.array([1, 0.01, 2, 0.02, 3, 1], np.float32)
    for name, held in (("w", floats(6, 3, 1, 1)), ("v", floats(2, 6, 1, 1)), ("scale", scale), ("shift", floats(6)),
                       ("mean", floats(6)), ("var", np.ones(6, np.float32))):  # fmt: skip
        proto.graph.initializer.append(numpy_helper.from_array(held, name))
    done = rewrite(proto, "prune-channels", ratio=1 / 3, even=True, importance="scale")
    assert done.initializer("scale").tolist() == [1, 2, 3, 1]


def test_what_reads_them_makes_up_for_copies(tmp_path: Path) -> None:
    """Half of the units copy the others: with data they go, and no output changes."""
    weights, shift = floats(12, 8, seed=3), floats(8, seed=4)
    proto = built(MLP, SHAPES, w0=np.tile(weights, 2), b0=np.tile(shift, 2))
    samples = inputs(300, 12)
    done = rewrite(proto, "prune-channels", ratio=0.5, even=True, multiple=1, context=Context(
        calibration=context(proto, tmp_path, samples).calibration, exclude=("w2",)))  # fmt: skip
    assert [each.name for each in done.outcome.changed] == ["a"]
    assert done.initializer("w0").shape == (12, 8)
    assert distance(done, inputs(200, 12, seed=7)) < 1e-3


@pytest.mark.parametrize(("body", "shapes", "shape"), [(MLP, SHAPES, (12,)), (CONVS, CONV_SHAPES, (3, 8, 8))])
def test_solving_anew_helps_on_samples_that_were_not_seen(
    tmp_path: Path, body: str, shapes: dict[str, tuple[int, ...]], shape: tuple[int, ...]
) -> None:
    proto = built(body, shapes)
    given = context(proto, tmp_path, inputs(400, *shape))
    fields: dict[str, Any] = {"ratio": 0.25, "even": True}
    unseen = inputs(200, *shape, seed=7)
    with_data = distance(rewrite(proto, "prune-channels", context=given, **fields), unseen)
    as_cut = distance(rewrite(proto, "prune-channels", context=given, repair=False, **fields), unseen)
    by_norm = distance(rewrite(proto, "prune-channels", importance="l2", **fields), unseen)
    assert with_data < 0.5 * as_cut
    assert with_data < 0.5 * by_norm


@pytest.mark.parametrize(("channels", "kept"), [(32, 16), (24, 16), (20, 14), (8, 8)])
def test_convolutions_stay_in_the_blocks_that_their_kernels_take(channels: int, kept: int) -> None:
    """32 channels stand in sixteens, 24 in eights, 20 in neither."""
    proto = built(CONVS, {"w0": (channels, 3, 3, 3), "w1": (channels, channels, 3, 3), "b1": (channels,),
                          "w2": (5, channels), "b2": (5,)})  # fmt: skip
    done = rewrite(proto, "prune-channels", ratio=0.3, even=True, blocks=True)
    assert done.initializer("w0").shape[0] == kept


def test_matrix_products_know_no_blocks() -> None:
    done = rewrite(built(MLP, SHAPES), "prune-channels", ratio=0.25, even=True, blocks=True)
    assert done.initializer("w0").shape == (12, 12)


def test_a_share_of_the_macs_is_kept(tmp_path: Path) -> None:
    proto = built(CONVS, CONV_SHAPES)
    done = rewrite(proto, "prune-channels", macs=0.6, context=context(proto, tmp_path, inputs(100, 3, 8, 8)))
    assert 0.4 < macs(done.after) / macs(done.before) <= 0.6


def test_a_share_of_the_bytes_is_kept() -> None:
    done = rewrite(built(MLP, SHAPES), "prune-channels", size=0.7)
    held = [sum(each.size for each in (numpy_helper.to_array(t) for t in of.proto.graph.initializer))
            for of in (done.before, done.after)]  # fmt: skip
    assert 0.55 < held[1] / held[0] <= 0.7


def test_cuts_are_where_they_harm_least(tmp_path: Path) -> None:
    """The first group has copies, so that it gives what the model is to lose."""
    weights, shift = floats(12, 8, seed=3), floats(8, seed=4)
    proto = built(MLP, SHAPES, w0=np.tile(weights, 2), b0=np.tile(shift, 2))
    done = rewrite(proto, "prune-channels", ratio=0.3, context=context(proto, tmp_path, inputs(300, 12)))
    assert [each.name for each in done.outcome.changed] == ["a"]
    assert done.outcome.changed[0].details["kept"] == 16 - 8


def test_what_hardly_anything_misses_goes_at_any_price(tmp_path: Path) -> None:
    """Four of sixteen units are read by zeros; without data nothing tells what others are worth."""
    weights = floats(16, 10, seed=3)
    weights[[1, 4, 9, 15]] = 0
    proto = built(MLP, SHAPES, w1=weights)
    done = rewrite(proto, "prune-channels", price=1e-4, context=context(proto, tmp_path, inputs(300, 12)))
    np.testing.assert_array_equal(done.initializer("w0"), np.delete(floats_of(proto, "w0"), [1, 4, 9, 15], axis=1))
    assert [each.name for each in done.outcome.changed] == ["a"]
    assert not rewrite(proto, "prune-channels", price=1e-4).outcome.changed


def test_what_cannot_be_seen_has_no_price(tmp_path: Path) -> None:
    """The reader stands in a branch, where no data show what it reads."""
    proto = model("""g (float[N, 12] x, bool c) => (float[N, 4] y) {
        a = Gemm(x, w0, b0) h = Relu(a)
        y = If(c) <then_branch = t () => (float[N, 4] p) { p = MatMul(h, w1) },
                   else_branch = e () => (float[N, 4] q) { q = MatMul(h, w1) }> }""")
    for name, held in (("w0", floats(12, 16)), ("b0", floats(16)), ("w1", np.zeros((16, 4), np.float32))):
        proto.graph.initializer.append(numpy_helper.from_array(held, name))
    np.savez(tmp_path / "calib.npz", x=inputs(50, 12), c=np.array(True))
    data = CalibrationData.open(tmp_path / "calib.npz", Session(load(proto).to_bytes()).inputs)
    assert not rewrite(proto, "prune-channels", price=1.0, context=Context(calibration=data)).outcome.changed


def test_numbers_kept_are_multiples() -> None:
    done = rewrite(built(MLP, SHAPES), "prune-channels", ratio=0.4, multiple=4)
    assert {name: done.initializer(name).shape[-1] % 4 for name in ("b0",)} == {"b0": 0}
    assert done.initializer("b1").shape[0] in (4, 8, 10)


def test_a_group_is_left_alone_where_something_of_it_is_excluded() -> None:
    done = rewrite(built(MLP, SHAPES), "prune-channels", ratio=0.25, even=True, context=Context(exclude=("b0",)))
    assert [each.name for each in done.outcome.changed] == ["c"]
    assert done.skipped("a") == "something that goes with it is excluded"


def test_what_one_group_loses_does_not_depend_on_which_are_chosen() -> None:
    proto = built(MLP, SHAPES)
    rewriting = get_pass("prune-channels")(ratio=0.3)
    whole = rewrite(proto, "prune-channels", ratio=0.3)
    graph = open_graph(load(proto))
    alone = rewriting.rewrite(graph, {"a": {}}, Context())
    kept = {each.name: each.details["kept"] for each in whole.outcome.changed}
    assert [each.details["kept"] for each in alone.changed] == ([kept["a"]] if "a" in kept else [])


def test_an_importance_that_there_is_not_is_refused() -> None:
    with pytest.raises(ParameterError, match="importance must be one of"):
        get_pass("prune-channels")(importance="taste")


def test_a_group_that_could_have_been_cut_is_the_first_reason_why_nothing_was() -> None:
    done = rewrite(built(MLP, SHAPES), "prune-channels", ratio=0.0)
    reasons = [(each.name, each.reason) for each in done.outcome.skipped]
    assert reasons == [
        ("a", "nothing of it is to go"), ("c", "nothing of it is to go"), ("y", "it is an output of its graph"),
    ]  # fmt: skip
