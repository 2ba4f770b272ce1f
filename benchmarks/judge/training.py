"""What the kinds trained with torch share: one thread, a seed, a loop, both exporters, compressed files.

Imported inside ``build`` only: the environment of requirements.txt.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

Array = NDArray[Any]


def start(seed: int) -> np.random.Generator:
    """One thread and fixed seeds."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def tensors(*arrays: Array) -> tuple[torch.Tensor, ...]:
    """As torch holds them: floats in float32, integers in int64."""
    return tuple(torch.from_numpy(a.astype(np.float32 if a.dtype.kind == "f" else np.int64)) for a in arrays)


def fit(
    module: torch.nn.Module,
    loss: Callable[..., torch.Tensor],
    arrays: tuple[torch.Tensor, ...],
    *,
    epochs: int,
    batch: int = 64,
    rate: float = 2e-3,
) -> torch.nn.Module:
    """Train with AdamW and one cycle of the rate; ``loss`` gets a batch of each array. Leaves it in eval mode."""
    optimizer = torch.optim.AdamW(module.parameters(), rate, weight_decay=0.01)
    count = len(arrays[0])
    steps = epochs * (count // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    module.train()
    for _ in range(epochs):
        for chosen in batches(count, batch):
            optimizer.zero_grad()
            loss(*(each[chosen] for each in arrays)).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return module.eval()


def batches(count: int, batch: int) -> Iterator[torch.Tensor]:
    """Shuffled indices of full batches."""
    order = torch.randperm(count)
    for start_at in range(0, count - batch + 1, batch):
        yield order[start_at : start_at + batch]


def export_dynamo(
    module: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    path: Path,
    *,
    inputs: list[str],
    outputs: list[str],
    shapes: Any,
) -> None:
    """Write the model by ``torch.export``; ``shapes`` as its ``dynamic_shapes``."""
    program = torch.onnx.export(
        module, args, input_names=inputs, output_names=outputs, dynamic_shapes=shapes, dynamo=True, verbose=False
    )
    assert program is not None
    save_lean(program.model_proto, path)


def export_torchscript(
    module: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    path: Path,
    *,
    inputs: list[str],
    outputs: list[str],
    axes: dict[str, dict[int, str]],
) -> None:
    """Write the model by tracing; ``axes`` as its ``dynamic_axes``."""
    file = io.BytesIO()
    torch.onnx.export(
        module, args, file, input_names=inputs, output_names=outputs, dynamic_axes=axes, opset_version=17, dynamo=False
    )
    save_lean(onnx.load_from_string(file.getvalue()), path)


def save_lean(model: onnx.ModelProto, path: Path) -> None:
    """Save without the exporter's stack traces, which take more bytes than the weights."""
    del model.metadata_props[:]
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        for each in [graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output]:
            each.ClearField("doc_string")
            each.ClearField("metadata_props")
        waiting += [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    path.write_bytes(model.SerializeToString(deterministic=True))


def parameters(module: torch.nn.Module) -> int:
    """How many numbers were trained."""
    return sum(each.numel() for each in module.parameters())
