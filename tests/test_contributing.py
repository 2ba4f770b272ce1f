"""The pass that CONTRIBUTING.md shows is a working pass."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from onnxcomp.contract import Context
from onnxcomp.errors import ParameterError
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import load
from onnxcomp.testing import check_pass

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Import the page's only Python block as the module clip_weights."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    folder = tmp_path_factory.mktemp("example")
    (folder / "clip_weights.py").write_text(code, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("clip_weights")


def test_example_clips_every_weight(example: ModuleType) -> None:
    graph = open_graph(load(ROOT / "models" / "lenet300.onnx"))
    before = {weight.name: np.array(weight.values) for weight in weights(graph)}
    outcome = example.ClipWeights(deviations=2.0).apply(graph, Context())
    after = {weight.name: weight.values for weight in weights(open_graph(close_graph(graph)))}
    assert [change.name for change in outcome.changed] == list(before)
    for name, values in before.items():
        limit = 2.0 * float(np.std(values))
        assert np.array_equal(after[name], np.clip(values, -limit, limit).astype(values.dtype))


def test_example_leaves_excluded_weights_alone(example: ModuleType) -> None:
    graph = open_graph(load(ROOT / "models" / "lenet300.onnx"))
    outcome = example.ClipWeights().apply(graph, Context(exclude=("*",)))
    assert not outcome.changed
    assert close_graph(graph).proto == graph.model.proto


def test_example_is_as_a_pass_should_be(example: ModuleType) -> None:
    check_pass(example.ClipWeights)


def test_example_is_known_by_its_file(example: ModuleType) -> None:
    assert example.ClipWeights.pass_name() == "clip-weights"
    with pytest.raises(ParameterError, match="clip-weights: deviations must be a number from"):
        example.ClipWeights(deviations=0.0)
