"""`bench` says where the time goes and how near to the machine's limit that is; `-vv` tells every decision."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Invoke


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks by few repetitions: how high they are is not looked at."""
    monkeypatch.setattr("onnxcomp.runtime.peaks.ENOUGH_S", 0.0)
    monkeypatch.setattr("onnxcomp.runtime.peaks.MOVED", (2**16,))


@pytest.mark.usefixtures("hasty")
def test_operators_are_shown_with_their_share_of_the_peak(invoke: Invoke, model_file: Path) -> None:
    text = invoke("bench", model_file, "--runs", "1", "-q").stdout
    headings = r"^net\.onnx: operator +nodes +time +MACs +bytes +share of the peak +bound by$"
    assert re.search(headings, text, re.MULTILINE)
    assert re.search(r"^MatMul +1 +\d+% +640 +[\d.]+ kB +\d+% +(bytes|float32)$", text, re.MULTILINE)
    assert re.search(r"The peak was measured here: \d+ GMAC/s in float32, \d+ in int8, \d+ GB/s of memory\.", text)


@pytest.mark.usefixtures("hasty")
def test_json_has_all_of_it(invoke: Invoke, model_file: Path) -> None:
    content = json.loads(invoke("bench", model_file, "--runs", "1", "--json", "-q").stdout)
    (cost,) = content["models"]
    assert sum(each["macs"] for each in cost["operators"]) == 16 * 64 + 64 * 10
    assert set(content["peaks"]) == {"float32_macs", "int8_macs", "bytes_moved"}


@pytest.mark.usefixtures("unmeasured")
def test_decisions_are_told_from_the_second_v_on(invoke: Invoke, model_file: Path, out: Path) -> None:
    told = re.compile(r"^ *\d+\.\d s  strip-metadata: (kept|taken back).*bytes", re.MULTILINE)
    args = ("optimize", model_file, "--recipe", "lossless", "-o", out / "net.onnx", "--force")
    assert not told.search(invoke(*args, "-v").stderr)
    said = invoke(*args, "-vv").stderr
    assert told.search(said), said
    assert not told.search(invoke(*args).stderr)  # and no longer than the command
    assert logging.getLogger("onnxcomp").level == logging.NOTSET
