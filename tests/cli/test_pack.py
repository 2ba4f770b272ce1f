"""onnxcomp pack and unpack."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import load

from tests.cli.conftest import Invoke
from tests.packing.test_round_trip import compact


def test_pack_and_unpack_give_the_file_back(invoke: Invoke, model_file: Path) -> None:
    before = model_file.read_bytes()
    packed = invoke("pack", model_file)
    assert packed.exit_code == 0, packed.output
    assert "written" in packed.output and f"{len(before):,}" in packed.output
    made = model_file.with_suffix(".onnxp")
    assert made.stat().st_size < len(before)
    back = invoke("unpack", made, "-o", model_file.with_name("back.onnx"), "--json")
    assert back.exit_code == 0, back.output
    assert json.loads(back.output)["bytes"] == len(before)
    assert model_file.with_name("back.onnx").read_bytes() == before


def test_unpack_replaces_nothing_without_force(invoke: Invoke, model_file: Path) -> None:
    invoke("pack", model_file)
    refused = invoke("unpack", model_file.with_suffix(".onnxp"))
    assert refused.exit_code == 1
    assert "--force" in refused.output
    assert invoke("unpack", model_file.with_suffix(".onnxp"), "--force").exit_code == 0


def test_unpack_as_plain_expands_what_was_stored(invoke: Invoke, out: Path) -> None:
    compact(np.random.default_rng(0).integers(0, 11, (64, 48)).astype(np.float32), out / "s.onnx")
    assert any(node.op_type == "Gather" for node in load(str(out / "s.onnx")).graph.node)
    assert invoke("pack", out / "s.onnx", "-o", out / "s.onnxp").exit_code == 0
    result = invoke("unpack", out / "s.onnxp", "-o", out / "p.onnx", "--as", "plain")
    assert result.exit_code == 0, result.output
    assert [node.op_type for node in load(str(out / "p.onnx")).graph.node] == ["MatMul"]


def test_a_broken_file_is_told_in_one_line_and_nothing_is_written(invoke: Invoke, model_file: Path, out: Path) -> None:
    invoke("pack", model_file, "-o", out / "m.onnxp")
    content = bytearray((out / "m.onnxp").read_bytes())
    content[20] ^= 1
    (out / "b.onnxp").write_bytes(content)
    result = invoke("unpack", out / "b.onnxp", "-o", out / "x.onnx")
    assert result.exit_code == 1
    assert result.output.count("\n") == 1 and "broken" in result.output
    assert not (out / "x.onnx").exists()
    assert invoke("unpack", model_file, "-o", out / "x.onnx").exit_code == 1


def test_a_missing_library_is_told_with_the_extra_that_has_it(
    invoke: Invoke, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    result = invoke("pack", model_file)
    assert result.exit_code == 1
    assert result.output.count("\n") == 1 and "onnxcomp[pack]" in result.output
    assert not model_file.with_suffix(".onnxp").exists()
