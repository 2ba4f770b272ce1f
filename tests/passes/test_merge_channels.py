"""merge-channels: units that compute the same become one and no output changes; others become their mean."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from onnxcomp.contract import Context
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.model import Model, load
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from tests.passes.exactly import floats, rewrite
from tests.passes.test_prune_channels import CONV_SHAPES, CONVS, MLP, SHAPES, built, context, inputs


def ran(model: Model, samples: np.ndarray) -> np.ndarray:
    return np.asarray(Session(model.to_bytes()).run({"x": samples})["y"])


def doubled(values: np.ndarray, axis: int, *, apart: float = 0.0) -> np.ndarray:
    """Each index of the first half of an axis once more in the second half, with some noise."""
    half = np.split(values, 2, axis=axis)[0]
    return np.concatenate([half, half + apart * floats(*half.shape, seed=77)], axis=axis)


def test_units_that_are_the_same_merge_and_no_output_changes() -> None:
    proto = built(MLP, SHAPES, w0=doubled(floats(12, 16), 1), b0=doubled(floats(16), 0))
    done = rewrite(proto, "merge-channels", ratio=8 / 26)
    assert [(each.name, each.what) for each in done.outcome.changed] == [("a", "8 of 16 channels cut")]
    samples = inputs(20, 12)
    np.testing.assert_allclose(ran(done.after, samples), ran(done.before, samples), rtol=1e-4, atol=1e-5)


def test_channels_of_a_residual_sum_merge_where_all_that_makes_them_is_the_same() -> None:
    held = {"w0": doubled(floats(8, 3, 3, 3), 0), "w1": doubled(floats(8, 8, 3, 3), 0), "b1": doubled(floats(8), 0)}
    done = rewrite(built(CONVS, CONV_SHAPES, **held), "merge-channels", ratio=0.5)
    assert done.initializer("w1").shape == (4, 4, 3, 3)
    samples = inputs(6, 3, 8, 8)
    np.testing.assert_allclose(ran(done.after, samples), ran(done.before, samples), rtol=1e-4, atol=1e-5)


def test_the_mean_of_what_makes_them_and_the_sum_of_what_reads_them() -> None:
    body = "g (float[N, 5] x) => (float[N, 4] y) { a = Gemm(x, w, b) h = Relu(a) y = MatMul(h, v) }"
    first = floats(5, 3)
    weight = np.stack([first[:, 0], first[:, 1], first[:, 0] + 0.01, first[:, 2], first[:, 0] - 0.02], axis=1)
    bias, reads = floats(5, seed=4) * 0.01, floats(5, 4, seed=5)
    done = rewrite(
        built(body, {"w": (5, 5), "b": (5,), "v": (5, 4)}, w=weight, b=bias, v=reads), "merge-channels", ratio=0.4
    )
    together, alone = [0, 2, 4], [1, 3]
    expected = sorted([(weight[:, together].mean(axis=1), bias[together].mean(), reads[together].sum(axis=0)),
                       *((weight[:, at], bias[at], reads[at]) for at in alone)], key=lambda each: each[1])  # fmt: skip
    got = zip(done.initializer("w").T, done.initializer("b"), done.initializer("v"), strict=True)
    for (made, shift, read), wanted in zip(sorted(got, key=lambda each: each[1]), expected, strict=True):
        np.testing.assert_allclose(made, wanted[0], rtol=1e-5)
        np.testing.assert_allclose(shift, wanted[1], rtol=1e-4)
        np.testing.assert_allclose(read, wanted[2], rtol=1e-5)


def test_nearly_equal_units_are_missed_less_than_when_they_are_dropped() -> None:
    held = {"w0": doubled(floats(12, 16), 1, apart=0.1), "b0": doubled(floats(16), 0, apart=0.1)}
    proto, samples = built(MLP, SHAPES, **held), inputs(200, 12)
    merged = rewrite(proto, "merge-channels", ratio=8 / 26)
    dropped = rewrite(proto, "prune-channels", ratio=8 / 26)
    wanted = ran(merged.before, samples)
    errors = [np.square(ran(each.after, samples) - wanted).mean() for each in (merged, dropped)]
    assert errors[0] < 0.1 * errors[1]


def test_data_make_up_for_what_merging_loses(tmp_path: Path) -> None:
    proto, samples, other = built(MLP, SHAPES), inputs(300, 12), inputs(100, 12, seed=9)
    found = context(proto, tmp_path, samples)
    wanted = ran(load(proto), other)
    errors = [
        np.square(
            ran(rewrite(proto, "merge-channels", context=found, ratio=0.4, repair=each).after, other) - wanted
        ).mean()
        for each in (True, False)
    ]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize(("nodes", "reason"), [
    ("c = Conv <group = 2> (h, u)", "in several groups"),
    ("q = LpPool <kernel_shape = [1, 1]> (h) c = Conv <group = 1> (q, v)", None),
])  # fmt: skip
def test_says_why_a_group_does_not_merge(nodes: str, reason: str | None) -> None:
    body = f"g (float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] y) {{ a = Conv(x, w) h = Relu(a) {nodes} y = Relu(c) }}"
    shapes = {"w": (8, 3, 3, 3), "u": (4, 4, 1, 1), "v": (4, 8, 1, 1)}
    proto = built(body, {name: shape for name, shape in shapes.items() if re.search(rf"\b{name}\b", body)})
    done = rewrite(proto, "merge-channels", ratio=0.5)
    assert bool(done.outcome.changed) == (reason is None)
    assert reason is None or any(reason in each.reason for each in done.outcome.skipped)


def test_takes_no_more_than_asked_of_the_model() -> None:
    proto = built(MLP, SHAPES)
    chosen = get_pass("merge-channels")(ratio=0.25, even=True)
    survey = chosen.sites(open_graph(load(proto)), Context())
    assert [each.name for each in survey.sites] == ["a", "c"]
    done = rewrite(proto, "merge-channels", ratio=0.25, even=True)
    assert [done.initializer(name).shape for name in ("w0", "w1")] == [(12, 12), (12, 8)]
