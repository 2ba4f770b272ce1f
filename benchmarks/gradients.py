"""The time of a step (loss and gradients of all weights) of the engines, beside native torch modules of the same nets.

    python -m benchmarks.gradients [--nets NAME,...] [--batch 32] [--steps 15] [--threads 1] [--json FILE]

It wants torch: pip install -e '.[train]'. Each net is exported by torch, with the mean squared error as loss; the
engines and the module take steps in turns, in one process, and the medians' ratios are printed, with the largest
relative difference of a weight's gradient from torch's own.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, helper
from rich.console import Console
from rich.table import Table

from benchmarks.gradient_nets import NETS
from onnxcomp.model import load
from onnxcomp.training.backward.engine import BackwardEngine
from onnxcomp.training.engine import Engine
from onnxcomp.training.torch_engine import TorchEngine

Array = NDArray[Any]
Step = Callable[[], tuple[float, Mapping[str, Array]]]
OPSET = 17
ENGINES: dict[str, type[Engine]] = {each.name: each for each in (TorchEngine, BackwardEngine)}


def exported(net: torch.nn.Module, sample: torch.Tensor) -> ModelProto:
    """The net as torch exports it, with inputs ``x`` and ``target`` and the output ``loss``."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's age: the newer one wants another package
        torch.onnx.export(
            net, (sample,), file, dynamo=False, opset_version=OPSET, input_names=["x"], output_names=["y"],
            do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        )  # fmt: skip
    model = onnx.load_from_string(file.getvalue())
    model.graph.node.extend([
        helper.make_node("Sub", ["y", "target"], ["difference"]),
        helper.make_node("Mul", ["difference", "difference"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["loss"], keepdims=0),
    ])
    model.graph.input.append(helper.make_tensor_value_info("target", 1, ["batch", 10]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("loss", 1, []))
    return model


def native(net: torch.nn.Module, x: torch.Tensor, target: torch.Tensor) -> Step:
    """A step of the module."""
    names, parameters = zip(*net.named_parameters(), strict=True)

    def step() -> tuple[float, Mapping[str, Array]]:
        loss = torch.nn.functional.mse_loss(net(x), target)
        slopes = torch.autograd.grad(loss, parameters)
        return loss.item(), {name: each.numpy() for name, each in zip(names, slopes, strict=True)}

    return step


def measured(name: str, batch: int, steps: int, threads: int) -> dict[str, Any]:
    """Milliseconds of a step by way, and the largest difference from torch's own gradients."""
    torch.manual_seed(0)
    make, shape = NETS[name]
    net = make().eval()
    with torch.no_grad():
        for parameter in net.parameters():  # no two alike: the exporter would merge them
            parameter.add_(0.01 * torch.randn_like(parameter))
    x = torch.randint(0, 1000, (batch, *shape)) if len(shape) == 1 else torch.randn(batch, *shape)
    target = torch.randn(batch, 10)
    model = load(exported(net, x))
    parameters = {key: value.detach().numpy() for key, value in net.named_parameters()}
    kept = {each.name for each in model.proto.graph.initializer}
    values = {key: value for key, value in parameters.items() if key in kept}
    values |= {each.name: model.read(each) for each in model.proto.graph.initializer if each.data_type == 1
               and each.name not in parameters and each.name.startswith("onnx::")}  # fmt: skip
    feeds = {"x": x.numpy(), "target": target.numpy()}
    ways: dict[str, Step] = {"native": native(net, x, target)}
    notes: dict[str, str] = {}
    for key, engine in ENGINES.items():
        missing = engine.unsupported(model, "loss", list(values))
        if missing:
            notes[key] = "; ".join(missing)
            continue
        made = engine(model, "loss", list(values), threads=threads)
        ways[key] = _stepping(made, feeds, values)
    reference = ways["native"]()[1]
    differences = {key: _difference(step()[1], reference) for key, step in ways.items()}
    return {"net": name, "ms": _in_turns(ways, steps), "difference": differences, "not done": notes}


def _stepping(engine: Engine, feeds: Mapping[str, Array], values: Mapping[str, Array]) -> Step:
    return lambda: engine.loss_and_gradients(feeds, values)


def _difference(slopes: Mapping[str, Array], reference: Mapping[str, Array]) -> float:
    """Of the weights that keep their names: the largest error relative to the gradient's own norm."""
    return max(
        float(np.linalg.norm(slopes[name] - each) / max(np.linalg.norm(each), 1e-12))
        for name, each in reference.items()
        if name in slopes
    )


def _in_turns(ways: Mapping[str, Step], steps: int) -> dict[str, float]:
    """Median milliseconds of the process's own time."""
    spent: dict[str, list[float]] = {key: [] for key in ways}
    for turn in range(steps + 2):
        for key, step in ways.items():
            started = time.process_time()
            step()
            if turn >= 2:
                spent[key].append(1e3 * (time.process_time() - started))
    return {key: float(np.median(each)) for key, each in spent.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = list(NETS) if options.nets == parser.get_default("nets") else options.nets.split(",")
    rows = [measured(name, options.batch, options.steps, options.threads) for name in names]
    keys = list(ENGINES)
    table = Table("net", "native, ms", *(f"{key} / native" for key in keys), *(f"{key}: difference" for key in keys))
    for row in rows:
        ms = row["ms"]
        ratios = [f"{ms[key] / ms['native']:.2f}" if key in ms else row["not done"].get(key, "") for key in keys]
        errors = [f"{row['difference'][key]:.1e}" if key in ms else "" for key in keys]
        table.add_row(row["net"], f"{ms['native']:.1f}", *ratios, *errors)
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
