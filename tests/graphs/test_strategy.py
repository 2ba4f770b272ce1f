"""The drawn models are valid, run, repeat for a seed, and cover what they claim to cover."""

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from onnxcomp.testing.models.building import BLOCKS
from tests.graphs import draw_models, feeds_for, models
from tests.graphs.features import features_of
from tests.graphs.running import check, run

SHARDS = 8
DRAWN = 1280

EVERYWHERE = """
fixed batch | symbolic batch | IR 3 | initializer as input | several inputs | several outputs | integer input
value_info | metadata | doc strings | node metadata | com.microsoft | local function
local function/attribute reference
weight/Constant node | weight/typed field | weight/shared | weight/two roles | weight/large | weight/unused
weight/duplicate | weight/sparse | weight/in subgraph | weight/behind Identity | weight/behind Cast
weight/behind Transpose | weight/behind Reshape | weight/behind Mul | weight/behind MatMul
weight/behind DequantizeLinear | weight/TensorProto.INT4 | weight/TensorProto.FLOAT16
Constant/value_float | Constant/value_floats
Conv/1d | Conv/2d | Conv/3d | Conv/strides | Conv/dilations | Conv/pads | Conv/uneven pads | Conv/group
Conv/depthwise | Conv/bias | Conv/no bias | Conv/auto_pad SAME_UPPER | Conv/auto_pad SAME_LOWER
Conv/auto_pad VALID
ConvTranspose/1d | ConvTranspose/2d | ConvTranspose/3d | ConvTranspose/strides | ConvTranspose/dilations
ConvTranspose/pads | ConvTranspose/group | ConvTranspose/depthwise | ConvTranspose/output_padding
ConvTranspose/output_shape | ConvTranspose/bias | ConvTranspose/no bias | ConvTranspose/auto_pad SAME_UPPER
Gemm/transA=0 transB=0 | Gemm/transA=0 transB=1 | Gemm/transA=1 transB=0 | Gemm/transA=1 transB=1
Gemm/alpha | Gemm/beta | Gemm/no C | Gemm/weight left
MatMul/weight left | MatMul/weight rank 1 | MatMul/weight rank 2 | MatMul/weight rank 3 | Einsum | FusedMatMul
BatchNormalization | InstanceNormalization | LayerNormalization | GroupNormalization | RMSNormalization | LRN
MaxPool | AveragePool | GlobalAveragePool | MaxPool/auto_pad SAME_UPPER
Add | Concat | Split | Reshape | Transpose | Pad | Slice | Gather | Resize | Upsample | DepthToSpace
Identity | Dropout | Cast | Unsqueeze | Squeeze | Where | SequenceConstruct | QuantizeLinear
LSTM/forward | LSTM/reverse | LSTM/bidirectional | LSTM/B | LSTM/sequence_lens | LSTM/initial_h | LSTM/P
GRU/forward | GRU/bidirectional | GRU/B | RNN/forward | RNN/bidirectional | RNN/initial_h
If | If with outer weight | Loop | Loop with outer weight | Scan
"""
NAMED = {name.strip() for line in EVERYWHERE.strip().splitlines() for name in line.split("|")}
NAMED |= {f"opset {version}" for version in range(9, 24)}


def assert_valid_and_runs(model: onnx.ModelProto, *, seed: int) -> None:
    check(model)
    outputs = run(model, feeds_for(model, seed))
    assert outputs
    for name, array in outputs.items():
        assert np.isfinite(array).all(), f"{name} is not finite"


@pytest.mark.parametrize("shard", range(SHARDS))
def test_drawn_models_pass_the_checker_and_run(shard: int) -> None:
    for index, model in enumerate(draw_models(DRAWN // SHARDS, seed=shard)):
        assert_valid_and_runs(model, seed=index)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(model=models())
def test_strategy_draws_models_that_pass_the_checker_and_run(model: onnx.ModelProto) -> None:
    assert_valid_and_runs(model, seed=1)


def test_onnx_runtime_agrees_with_itself_on_drawn_models() -> None:
    """Its optimizations change rounding only; else a pass could not be told from a fault of ONNX Runtime."""
    for index, model in enumerate(draw_models(DRAWN // SHARDS, seed=20)):
        feeds = feeds_for(model, index)
        plain = run(model, feeds, optimized=False)
        for name, array in run(model, feeds).items():
            scale = max(float(np.abs(plain[name]).max(initial=0)), 1e-6)
            np.testing.assert_allclose(array, plain[name], rtol=0, atol=2e-5 * scale, err_msg=f"{index}: {name}")


def test_every_named_feature_occurs() -> None:
    counts = Counter(name for shard in range(SHARDS) for name in _features(shard))
    missing = sorted(name for name in NAMED if not counts[name])
    assert not missing


def test_strategy_reaches_the_features_too() -> None:
    """Hypothesis prefers small choices, so the rare ones need not all occur here."""
    counts: Counter[str] = Counter()

    @settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(model=models())
    def collect(model: onnx.ModelProto) -> None:
        counts.update(features_of(model))

    collect()
    assert len(NAMED - counts.keys()) < len(NAMED) / 4, sorted(NAMED - counts.keys())
    assert len([name for name in counts if name.startswith("opset")]) > 10


def test_same_seed_gives_the_same_models() -> None:
    first, second, other = (draw_models(70, seed=seed) for seed in (5, 5, 6))
    assert [model.SerializeToString() for model in first] == [model.SerializeToString() for model in second]
    assert [model.SerializeToString() for model in first] != [model.SerializeToString() for model in other]


def test_every_block_comes_first_in_turn() -> None:
    assert len(draw_models(len(BLOCKS))) == len(BLOCKS) > 60


def test_feeds_leave_out_initializers_and_share_symbolic_sizes() -> None:
    for index, model in enumerate(draw_models(200, seed=3)):
        feeds = feeds_for(model, seed=index)
        assert not feeds.keys() & {tensor.name for tensor in model.graph.initializer}
        batches = {
            feeds[value.name].shape[0]
            for value in model.graph.input
            if value.name in feeds and value.type.tensor_type.shape.dim[:1]
            and value.type.tensor_type.shape.dim[0].dim_param
        }  # fmt: skip
        assert len(batches) <= 1


def _features(shard: int) -> list[str]:
    return [name for model in draw_models(DRAWN // SHARDS, seed=shard) for name in features_of(model)]
