"""The plug-in that docs/plugins.md shows: found by its entry point, run by its name, and as every pass should be."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcomp.contract import Pass
from onnxcomp.testing import check_pass, checks_of
from tests.testing import faulty

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The page's blocks of code in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's package is installed, as pip would: its files, and its metadata beside them."""
    folder = tmp_path_factory.mktemp("plugin")
    (source, test), [config] = blocks("python"), blocks("toml")
    (folder / "drop_tiny.py").write_text(source, encoding="utf-8")
    (folder / "test_drop_tiny.py").write_text(test, encoding="utf-8")
    project = tomllib.loads(config)["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = [
        line
        for group, named in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in named.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(points))
    return folder


@pytest.fixture(scope="module")
def drop_tiny(package: Path) -> Iterator[type[Pass]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package)
        yield importlib.import_module("drop_tiny").DropTiny


def onnxcomp(package: Path, *arguments: str) -> str:
    """What the command prints where the plug-in is installed, or the error that it ends with."""
    environment = {**os.environ, "PYTHONPATH": str(package)}
    command = [sys.executable, "-m", "onnxcomp", *arguments]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=300)
    return done.stdout if done.returncode == 0 else done.stderr


def test_plugin_is_as_a_pass_should_be(drop_tiny: type[Pass]) -> None:
    check_pass(drop_tiny)


def test_plugin_is_known_by_its_entry_point(package: Path) -> None:
    assert "of the largest magnitude; what is below goes" in onnxcomp(package, "passes", "drop-tiny")


def test_plugin_under_another_name_is_refused(package: Path, tmp_path: Path) -> None:
    shutil.copytree(package, tmp_path, dirs_exist_ok=True)
    [points] = tmp_path.glob("*.dist-info/entry_points.txt")
    points.write_text(points.read_text().replace("drop-tiny =", "drop-small ="))
    said = onnxcomp(tmp_path, "passes", "drop-small")
    assert "drop-small: the plug-in drop_tiny:DropTiny is the pass drop-tiny. Name its entry point so." in said


def test_plugin_runs_by_its_name(package: Path, tmp_path: Path) -> None:
    source, made = ROOT / "models" / "lenet300.onnx", tmp_path / "made.onnx"
    onnxcomp(package, "run", "drop-tiny", str(source), "-o", str(made), "--share", "0.01")
    before, after = (_largest(path) for path in (source, made))
    assert np.count_nonzero(after) < np.count_nonzero(before)
    kept = np.abs(before) >= 0.01 * np.abs(before).max()
    assert np.array_equal(after[kept], before[kept])


def test_page_shows_what_a_check_says(monkeypatch: pytest.MonkeyPatch, drop_tiny: type[Pass]) -> None:
    monkeypatch.setattr(drop_tiny, "makes", frozenset())
    with pytest.raises(AssertionError) as caught:
        dict(checks_of(drop_tiny))["structures_made"]()
    assert f"```\n{caught.value}\n```" in PAGE


def test_page_names_every_check() -> None:
    table = "".join(line for line in PAGE.splitlines() if line.startswith("|"))
    named = set(re.findall(r"`(\w+)`(?=[^|]*\|[^|]*\|)", table))
    assert {name for name, _ in checks_of(faulty.Halving)} <= named


def _largest(path: Path) -> np.ndarray:
    tensors = [onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
    return max(tensors, key=lambda each: each.size)
