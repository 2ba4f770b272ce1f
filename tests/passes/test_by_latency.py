"""The share of the time that is asked of passes that cut and split, with a clock that reads a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto

from onnxcomp.budget import Budget
from onnxcomp.contract import Context
from onnxcomp.contract.outcome import AskedTime
from onnxcomp.errors import ParameterError
from onnxcomp.pipeline.api import optimize
from onnxcomp.pipeline.replay import replay
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass
from onnxcomp.target import Target
from onnxcomp.target.node_times import Fed, NodeTimes
from tests.by_table import Table, Times
from tests.passes.exactly import Rewrite, floats, model, rewrite
from tests.passes.test_prune_channels import MLP, SHAPES, built, context, inputs

CONVS = """g (float[1, 3, 8, 8] x) => (float[1, 5] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w0) h = Relu(a) c = Conv <pads = [1, 1, 1, 1]> (h, w1) i = Relu(c)
    p = GlobalAveragePool(i) f = Flatten(p) y = Gemm <transB = 1> (f, w2) }"""
CONV_SHAPES = {"w0": (32, 3, 3, 3), "w1": (32, 32, 3, 3), "w2": (5, 32)}


def timed_by(times: Times) -> Context:
    return Context(times=NodeTimes(Table(times)))


def in_sixteens(node: NodeProto, constants: list[tuple[int, ...]]) -> float:
    """As kernels take channels: sixteen at once, on both sides."""
    if node.op_type != "Conv":
        return 0.01 * len(constants)
    return float(np.prod([math.ceil(each / 16) for each in constants[0][:2]]))


def last_alone(node: NodeProto, constants: list[tuple[int, ...]]) -> float:
    """Only what reads the second hidden layer takes time: a tenth of a millisecond for each unit."""
    return constants[0][0] / 10 if constants and constants[0][1] == 4 else 0.0


def cut(times: Times, body: str = CONVS, shapes: Any = None, **fields: Any) -> Rewrite:
    return rewrite(built(body, shapes or CONV_SHAPES), "prune-channels", context=timed_by(times), **fields)


# --- channels --------------------------------------------------------------------------------------------------------


def test_numbers_of_channels_that_are_no_faster_are_not_chosen() -> None:
    """24 of 32 take what 32 do: the share is met with 16, in one group or in both."""
    done = cut(in_sixteens, latency=0.7)
    shapes = [done.initializer(name).shape for name in ("w0", "w1", "w2")]
    assert {shapes[0][0], shapes[1][0], shapes[2][1]} == {16, 32}
    took = sum(in_sixteens(each, [shape]) for each, shape in zip(done.graph.node[:3:2], shapes[:2], strict=True))
    assert took <= 0.7 * (2 + 4)


def test_the_cut_is_where_time_is_saved_not_where_multiplications_are() -> None:
    done = cut(last_alone, MLP.replace("N", "1"), SHAPES, latency=0.7)
    assert [each.name for each in done.outcome.changed] == ["c"]
    assert done.initializer("w2").shape == (7, 4)
    assert done.skipped("a") == "no smaller number of them is faster on the target"
    assert done.outcome.changed[0].details["latency_alone"] == pytest.approx(0.7)


def test_what_times_decided_is_made_again_without_a_clock() -> None:
    done = cut(in_sixteens, latency=0.7)
    assert done.outcome.decided
    graph_of_it = built(CONVS, CONV_SHAPES)
    again = rewrite_choice(graph_of_it, "prune-channels", done.outcome.decided, latency=0.7)
    assert again.after.to_bytes() == done.after.to_bytes()


def test_a_number_of_units_kept_is_kept_of_every_group() -> None:
    done = rewrite(built(MLP, SHAPES), "prune-channels", kept=12)
    assert (done.initializer("w0").shape, done.initializer("w1").shape) == ((12, 12), (12, 10))
    assert done.skipped("c") == "nothing of it is to go"


def test_with_a_price_no_more_goes_than_is_worth_it_and_nothing_that_saves_no_time(tmp_path: Path) -> None:
    """Three of ten units of the second layer make nothing. The first layer has as cheap ones, which take no time."""
    weights = floats(16, 10, seed=5)
    weights[:, [1, 4, 8]] = 0
    proto = built(MLP, SHAPES, w1=weights, b1=np.zeros(10, np.float32))
    given = dataclasses.replace(context(proto, tmp_path, inputs(200, 12)), times=NodeTimes(Table(last_alone)))
    done = rewrite(proto, "prune-channels", context=given, latency=0.1, price=0.05)
    assert {name: done.initializer(name).shape for name in ("w0", "w2")} == {"w0": (12, 16), "w2": (7, 4)}


def test_more_is_cut_where_the_whole_model_is_slower_than_its_nodes_promise(tmp_path: Path) -> None:
    def sluggish(models: Sequence[Fed], target: Target, seconds: float) -> list[float | None]:
        """A whole model saves half of what its nodes do."""
        took = Table(by_units)(models, target, seconds)
        is_whole = [len(each.proto.graph.node) > 1 for each, _ in models]
        return [(each or 0) + 392 * whole for each, whole in zip(took, is_whole, strict=True)]

    proto = built(MLP, SHAPES)
    given = dataclasses.replace(context(proto, tmp_path, inputs(100, 12)), times=NodeTimes(sluggish))
    done = rewrite(proto, "prune-channels", context=given, latency=0.8)
    sizes = [done.initializer(name).size for name in ("w0", "w1", "w2")]
    before = sum(np.prod(SHAPES[name]) for name in ("w0", "w1", "w2"))
    assert (392 + sum(sizes)) / (392 + before) <= 0.8
    assert done.outcome.changed[0].details["latency_of_all"] <= 0.8


def by_units(node: NodeProto, constants: list[tuple[int, ...]]) -> float:
    return float(np.prod(constants[0])) if constants else 0.0


@pytest.mark.parametrize(
    ("left", "said"), [(0.994, "0.99 of the model's time is the least"), (0.995, "none of its options takes less")]
)
def test_where_nothing_is_faster_it_is_said_in_words(left: float, said: str) -> None:
    [note] = AskedTime(0.8, left, "the model's").notes
    assert note.startswith("latency 0.8 asked, ") and said in note


@pytest.mark.parametrize("latency", [0, 0.001])
def test_a_share_that_is_out_of_reach_is_told(latency: float) -> None:
    """One block of sixteen is the least of either layer: 1 of 2 and 1 of 4 milliseconds."""
    done = cut(in_sixteens, latency=latency)
    least = 2.01 / 6.01
    told = f"latency {latency:g} asked, {least:.2g} of the model's time is the least that its options leave"
    assert done.outcome.notes == [f"prune-channels: {told} (foreseen by timed nodes)"]
    for each in done.outcome.changed:
        assert each.details["latency_foreseen"] == pytest.approx(least, abs=1e-4)
        assert each.details["latency_asked"] == latency


def test_a_share_that_was_reached_stands_beside_what_is_foreseen() -> None:
    done = cut(in_sixteens, latency=0.7)
    assert not done.outcome.notes
    details = done.outcome.changed[0].details
    assert details["latency_foreseen"] <= details["latency_asked"] == 0.7


def test_what_was_run_and_out_of_reach_is_told_as_run(tmp_path: Path) -> None:
    proto = built(MLP, SHAPES)
    given = dataclasses.replace(context(proto, tmp_path, inputs(100, 12)), times=NodeTimes(Table(by_units)))
    done = rewrite(proto, "prune-channels", context=given, latency=0.001)
    [note] = done.outcome.notes
    left = sum(done.initializer(name).size for name in ("w0", "w1", "w2"))
    share = left / sum(np.prod(SHAPES[name]) for name in ("w0", "w1", "w2"))
    assert f"asked, {share:.2g} of the model's time is the least that its options leave (the cut model was run)" in note
    assert done.outcome.changed[0].details["latency_of_all"] == pytest.approx(share, abs=1e-4)


def test_where_nothing_is_faster_all_of_the_time_is_left() -> None:
    done = cut(lambda node, constants: 1.0 * bool(constants), latency=0.5)
    assert not done.outcome.changed
    [note] = done.outcome.notes
    assert note.endswith("latency 0.5 asked, and none of its options takes less of the model's time")


def test_a_price_and_a_time_are_replayed_by_the_numbers_that_they_came_to(tmp_path: Path) -> None:
    weights = floats(16, 10, seed=5)
    weights[:, [1, 4, 8]] = 0
    proto = built(MLP, SHAPES, w1=weights, b1=np.zeros(10, np.float32))
    given = dataclasses.replace(context(proto, tmp_path, inputs(200, 12)), times=NodeTimes(Table(last_alone)))
    done = rewrite(proto, "prune-channels", context=given, latency=0.9, price=0.05)
    assert done.outcome.changed and all(each["price"] is None for each in done.outcome.decided.values())


@pytest.mark.parametrize("name", ["prune-channels", "prune-heads", "merge-channels"])
@pytest.mark.parametrize("other", ["macs", "size", "kept"])
def test_a_time_and_another_extent_are_refused(name: str, other: str) -> None:
    with pytest.raises(ParameterError, match=f"{name}: {other} must be left out where latency is given"):
        get_pass(name)(**{"latency": 0.7, other: 1})


# --- factors ---------------------------------------------------------------------------------------------------------

TWO = """g (float[4, 128] x) => (float[4, 128] z) { h = MatMul(x, w0) y = MatMul(h, w1) z = Relu(y) }"""


def falling(seed: int) -> np.ndarray:
    """A matrix whose singular values fall."""
    left, _, right = np.linalg.svd(floats(128, 128, seed=seed))
    return np.asarray((left * 0.95 ** np.arange(128)) @ right, np.float32)


def two_products() -> ModelProto:
    return built(TWO, {"w0": (128, 128), "w1": (128, 128)}, w0=falling(1), w1=falling(2))


def test_ranks_go_where_they_save_time() -> None:
    """Two matrices of the same singular values; what has 96 columns takes ten times as long for each of its values."""
    proto = built(
        TWO.replace("128] z", "96] z"), {"w0": (128, 128), "w1": (128, 96)}, w0=falling(1), w1=falling(2)[:, :96]
    )

    def times(node: NodeProto, constants: list[tuple[int, ...]]) -> float:
        return sum(math.prod(each) * (10 if 96 in each else 1) for each in constants) / 1e4

    done = rewrite(proto, "factorize-linear", context=timed_by(times), latency=0.6)
    assert [each.name for each in done.outcome.changed] == ["w1"]
    assert done.outcome.changed[0].details["rank"] % 16 == 0
    assert done.skipped("w0") == "the share is met with less harm by splitting others"


@pytest.mark.parametrize("latency", [0.001, 0.6])
def test_whether_factors_reach_their_share_is_told(latency: float) -> None:
    """Two factors of rank 4, the least that there is, take 4.1 of 10 milliseconds."""
    proto = two_products()

    def times(node: NodeProto, constants: list[tuple[int, ...]]) -> float:
        """A whole matrix takes 10 ms, a factor 2 and what its values do."""
        return sum(10 if each == (128, 128) else 2 + math.prod(each) / 1e4 for each in constants)

    done = rewrite(proto, "factorize-linear", context=timed_by(times), latency=latency)
    assert done.outcome.changed
    details = done.outcome.changed[0].details
    if latency == 0.6:
        assert not done.outcome.notes
        assert details["latency_foreseen"] <= details["latency_asked"] == 0.6
    else:
        told = "0.41 of its nodes' time is the least that its options leave (foreseen by timed nodes)"
        assert done.outcome.notes == [f"factorize-linear: latency 0.001 asked, {told}"]


@pytest.mark.parametrize("name", ["factorize-linear", "factorize-conv"])
def test_a_split_that_is_not_faster_is_not_made_and_the_outcome_says_so(name: str) -> None:
    """Each node takes a millisecond, however small it is."""
    proto = two_products() if name == "factorize-linear" else built(CONVS, CONV_SHAPES)
    fields = {"decomposition": "spatial"} if name == "factorize-conv" else {}
    done = rewrite(proto, name, context=timed_by(lambda node, constants: 1.0 * bool(constants)), latency=0.5, **fields)
    assert not done.outcome.changed
    assert done.skipped("w1") == "no split of it is faster on the target: the fastest takes 2.00 of its time"


def test_ranks_between_timed_ones_are_not_timed() -> None:
    table = Table(lambda node, constants: sum(math.prod(each) for each in constants) / 1e4)
    rewrite(two_products(), "factorize-linear", context=Context(times=NodeTimes(table)), latency=0.5)
    assert len(table.asked) == len(set(table.asked)) <= 1 + 5


def test_a_chain_is_chosen_by_its_time_not_by_its_multiplications() -> None:
    """Depthwise convolutions are slow here, so that no chain has one, whatever it saves."""

    def times(node: NodeProto, constants: list[tuple[int, ...]]) -> float:
        if not constants:
            return 0.0
        depthwise = any(each.name == "group" and each.i > 1 for each in node.attribute)
        return math.prod(constants[0]) / 1e3 + 100 * depthwise

    done = cut_conv(times, latency=0.5)
    [change] = [each for each in done.outcome.changed if each.name == "w1"]
    assert change.details["decomposition"] in ("channel", "spatial", "tucker")
    assert change.details["latency_share"] < 1


def cut_conv(times: Times, **fields: Any) -> Rewrite:
    return rewrite(built(CONVS, CONV_SHAPES), "factorize-conv", context=timed_by(times), **fields)


def test_what_times_decided_of_chains_is_made_again_without_a_clock() -> None:
    fields: dict[str, Any] = {"latency": 0.5, "decomposition": "spatial"}
    done = cut_conv(lambda node, constants: sum(math.prod(each) for each in constants) / 1e3, **fields)
    assert done.outcome.decided
    again = rewrite_choice(built(CONVS, CONV_SHAPES), "factorize-conv", done.outcome.decided, **fields)
    assert again.after.to_bytes() == done.after.to_bytes()


def test_nodes_of_open_shapes_are_left_alone() -> None:
    proto = model("g (float[N, L, 128] x) => (float[N, L, 128] z) { z = MatMul(x, w0) }")
    proto.graph.initializer.extend(built(TWO, {"w0": (128, 128)}).graph.initializer)
    done = rewrite(proto, "factorize-linear", context=timed_by(lambda node, constants: 1.0), latency=0.5)
    assert done.skipped("w0").startswith("how long its nodes take is not known")
    assert done.outcome.notes == ["factorize-linear: latency 0.5 asked, but how long its nodes take is not known"]


def test_one_of_them_says_how_far() -> None:
    with pytest.raises(ParameterError, match="latency must be left out where macs is given"):
        get_pass("factorize-linear")(macs=0.5, latency=0.5)


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "body", "shapes", "shape"), [
    ("prune-channels", MLP, SHAPES, (12,)),
    ("factorize-linear", "g (float[N, 128] x) => (float[N, 128] z) { h = MatMul(x, w0) z = Relu(h) }",
     {"w0": (128, 128)}, (128,)),
])  # fmt: skip
def test_a_receipt_is_replayed_to_the_byte_whatever_was_timed(
    tmp_path: Path, name: str, body: str, shapes: dict[str, tuple[int, ...]], shape: tuple[int, ...]
) -> None:
    proto = built(body, shapes, **({"w0": falling(1)} if name == "factorize-linear" else {}))
    np.savez(tmp_path / "calib.npz", x=inputs(120, *shape))
    recipe = Recipe.of(get_pass(name)(latency=0.001))
    calib = str(tmp_path / "calib.npz")
    found = optimize(proto, recipe=recipe, calibration=calib, budget=Budget.parse(max_drop="1e9"), measure=False)
    assert replay(proto, found.receipt, calibration=calib).model.to_bytes() == found.model.to_bytes()
    assert any(each.startswith(f"{name}: latency 0.001 asked, ") for each in found.receipt.notes)
    for applied in found.receipt.applied:
        assert applied.choice and all(each["latency"] is None for each in applied.choice.values())


def rewrite_choice(proto: ModelProto, name: str, choice: Any, **fields: Any) -> Rewrite:
    """Act at a choice of sites, with a clock that must not be asked."""
    from onnxcomp.graph.ir.reader import close_graph
    from onnxcomp.graph.stored.opening import open_plain
    from onnxcomp.model import load

    def unasked(models: Sequence[Fed], target: Target, seconds: float) -> list[float | None]:
        raise AssertionError("the clock was asked")

    before = load(proto)
    graph = open_plain(before)
    rewriting: Any = get_pass(name)(**fields)
    outcome = rewriting.rewrite(graph, choice, Context(times=NodeTimes(unasked)))
    return Rewrite(before, close_graph(graph), outcome)
