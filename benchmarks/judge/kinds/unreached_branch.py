"""A network with an If: a flag among its inputs picks one of two branches, and no calibration sample sets it.

Accuracy, the mean over both branches. One sample a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge.catalogue import Array, Run

KIND = "branches"
EXPORTER = "onnx.helper"
FEATURES, CLASSES, WIDTH, STEP = 24, 10, 56, 16


class _World:
    """The flag turns one rule for the classes into another."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.first = rng.normal(0, FEATURES**-0.5, (2, FEATURES, 16))
        self.second = rng.normal(0, 1, (2, 16, CLASSES))

    def made(self, rng: np.random.Generator, flag: Array) -> tuple[Array, Array]:
        """Features, int8, and classes for flags of 0 and 1."""
        features = rng.normal(0, 1, (len(flag), FEATURES))
        inner = np.tanh(1.5 * np.einsum("nf,nfk->nk", features, self.first[flag]))
        labels = np.einsum("nk,nkc->nc", inner, self.second[flag]).argmax(axis=1)
        return np.clip(np.round(features * STEP), -127, 127).astype(np.int8), labels


def _as_input(levels: Array) -> Array:
    return np.asarray(levels.astype(np.float32) / STEP)


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch
    from torch import nn

    from benchmarks.judge import training

    rng = training.start(seed)
    world = _World(rng)
    flag = rng.integers(0, 2, 40000)
    features, labels = world.made(rng, flag)
    trunk = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU())
    heads = nn.ModuleList(
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)) for _ in range(2)
    )
    model = nn.ModuleList([trunk, heads])

    def loss(x: torch.Tensor, flag: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        inner = trunk(x)
        logits = torch.where(flag[:, None] > 0, heads[1](inner), heads[0](inner))
        return nn.functional.cross_entropy(logits, labels)

    training.fit(model, loss, training.tensors(_as_input(features), flag, labels), epochs=8, batch=100)
    training.save_lean(_graph(trunk, heads), folder / "model.onnx")

    unset = np.zeros(320, int)
    np.savez_compressed(
        folder / "calib.npz", features=_as_input(world.made(rng, unset)[0]), flag=np.zeros(len(unset), bool)
    )
    flag = np.arange(3000) % 2
    features, labels = world.made(rng, flag)
    np.savez_compressed(
        folder / "test.npz", features=features, label=labels.astype(np.uint8), flag=flag.astype(np.uint8)
    )


def _graph(trunk: Any, heads: Any) -> Any:
    """The ModelProto of the trained parts: the trunk, then an If that picks one of the two heads."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def gemm(layer: Any, source: str, target: str, tensors: list[onnx.TensorProto]) -> onnx.NodeProto:
        names = [f"{target}_weight", f"{target}_bias"]
        for name, value in zip(names, (layer.weight, layer.bias), strict=True):
            tensors.append(numpy_helper.from_array(value.detach().numpy(), name))
        return helper.make_node("Gemm", [source, *names], [target], transB=1)

    def branch(head: Any, name: str) -> onnx.GraphProto:
        tensors: list[onnx.TensorProto] = []
        nodes = [
            gemm(head[0], "inner", f"{name}_hidden", tensors),
            helper.make_node("Relu", [f"{name}_hidden"], [f"{name}_active"]),
            gemm(head[2], f"{name}_active", f"{name}_logits", tensors),
        ]
        out = helper.make_tensor_value_info(f"{name}_logits", TensorProto.FLOAT, [1, CLASSES])
        return helper.make_graph(nodes, name, [], [out], tensors)

    tensors: list[onnx.TensorProto] = []
    nodes = [
        gemm(trunk[0], "features", "summed", tensors),
        helper.make_node("Relu", ["summed"], ["inner"]),
        helper.make_node(
            "If", ["flag"], ["logits"], then_branch=branch(heads[1], "rare"), else_branch=branch(heads[0], "usual")
        ),
    ]
    inputs = [
        helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, FEATURES]),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, [1]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])]
    graph = helper.make_graph(nodes, "branches", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def units(run: Run, test: dict[str, Array]) -> Array:
    """(samples, 2): the flag, and 1 where the winner is right."""
    features, flags = _as_input(test["features"]), test["flag"] > 0
    logits = [run({"features": features[i : i + 1], "flag": flags[i : i + 1]})["logits"] for i in range(len(flags))]
    return np.stack([test["flag"], np.concatenate(logits).argmax(axis=1) == test["label"]], axis=1)


def score(units: Array) -> float:
    """Mean of both branches' accuracy in percent."""
    return 50 * float(sum(units[units[:, 0] == flag, 1].mean() for flag in (0, 1)))
