"""What models and data are known by: the content, all of it, and nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.model import Model, load, save
from onnxcomp.pipeline.history import digests
from onnxcomp.pipeline.history.digests import data_digest, result_digest, source_digest
from onnxcomp.receipt import file_digest

TEXT = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,2] x) => (float[N,2] y) { y = MatMul(x, w) }'


def model(fill: float = 1.0) -> Model:
    proto = parser.parse_model(TEXT)
    proto.graph.initializer.append(numpy_helper.from_array(np.full((2, 2), fill, np.float32), "w"))
    return load(proto)


def digest(*groups: Any) -> str:
    data: Any = SimpleNamespace(groups=[SimpleNamespace(load=lambda each=each: each) for each in groups])
    return data_digest(data)


ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    "other",
    [
        {"x": ONES * 2},
        {"x": ONES.reshape(3, 2)},
        {"x": ONES.view(np.int32)},
        {"z": ONES},
        {"x": ONES, "z": ONES},
        {"x": [ONES]},
        {"x": [ONES[:1], ONES[1:]]},
    ],
)
def test_other_values_shapes_types_names_and_lengths_are_other_data(other: dict[str, Any]) -> None:
    assert digest({"x": ONES}) != digest(other)


def test_neither_the_order_of_names_nor_that_in_memory_counts() -> None:
    assert digest({"x": ONES, "z": 2 * ONES}) == digest({"z": 2 * ONES, "x": np.asfortranarray(ONES)})


@pytest.mark.parametrize("kind", ["O", "U"])
def test_strings_are_known_by_what_they_say(kind: str) -> None:
    def text(*words: str) -> dict[str, Any]:
        return {"x": np.array(["".join([each, "!"]) for each in words], kind)}

    assert digest(text("one", "two")) == digest(text("one", "two")) != digest(text("one", "three"))


def test_a_model_that_was_read_is_known_by_its_file_and_another_by_its_content(tmp_path: Path) -> None:
    path = save(model(), tmp_path / "m.onnx")[0]
    assert source_digest(load(path)) == file_digest(path)
    assert source_digest(model()) == source_digest(model()) != source_digest(model(2.0))


def test_a_result_is_known_by_its_file_unless_that_has_the_data_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = model()
    assert result_digest(made) == file_digest(save(made, tmp_path / "any_name.onnx")[0])
    monkeypatch.setattr(digests, "WRITTEN_WHOLE_BYTES", made.size_bytes + 1)
    assert result_digest(made) is not None
    monkeypatch.setattr(digests, "WRITTEN_WHOLE_BYTES", made.size_bytes)
    assert result_digest(made) is None
