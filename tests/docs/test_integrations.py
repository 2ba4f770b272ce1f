"""The examples of docs/integrations: their commands are run, their scripts do what they say, and their files are what
the tools that they are for take, where these are installed."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from onnxcomp.cli import commands
from tests.docs.blocks import ROOT
from tests.docs.conftest import environment, leave_costs_out

EXAMPLES = ROOT / "docs" / "integrations"


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_costs_out(monkeypatch)


def read_yaml(name: str) -> dict:
    return pytest.importorskip("yaml").safe_load((EXAMPLES / name).read_text(encoding="utf-8"))


def run(line: str) -> None:
    """Run an onnxcomp command line in this process; what follows ">" is the file that its output goes to."""
    words, _, file = line.partition(" > ")
    result = CliRunner().invoke(commands, shlex.split(words)[1:], prog_name="onnxcomp")
    assert result.exit_code == 0, f"{line}\n{result.output}"
    if file:
        Path(file).write_text(result.stdout, encoding="utf-8")


def needed(name: str) -> str:
    """The command of that name in this environment; a skip where there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed here")
    return found


def called(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def commands_of_yaml(content: object) -> Iterator[str]:
    """The lines below keys called run or cmd."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content if isinstance(content, list) else ())
    for key, value in pairs:
        if key in ("run", "cmd"):
            yield from value.splitlines()
        else:
            yield from commands_of_yaml(value)


def test_github_actions_commands_work(folder: Path) -> None:
    lines = [line for line in commands_of_yaml(read_yaml("github-actions.yml")) if line.startswith("onnxcomp ")]
    assert len(lines) == 2
    for line in lines:
        run(line)
    assert {"ci.onnx", "ci.receipt.json"} <= {each.name for each in folder.iterdir()}  # what is uploaded


def test_dvc_stages_make_what_they_declare(folder: Path) -> None:
    for stage in read_yaml("dvc.yaml")["stages"].values():
        assert all((folder / each).exists() for each in stage["deps"])
        run(stage["cmd"])
        made = [*stage.get("outs", []), *(name for each in stage["metrics"] for name in each)]
        assert all((folder / each).exists() for each in made)
    assert json.loads((folder / "dvc.check.json").read_text())["passed"] is True


def test_dvc_reproduces_the_stages(folder: Path) -> None:
    dvc = needed("dvc")
    shutil.copy(EXAMPLES / "dvc.yaml", folder)
    called(dvc, "init", "--no-scm")
    called(dvc, "repro")
    assert (folder / "dvc.check.json").exists()


def test_the_hook_checks_receipts(folder: Path) -> None:
    [hook] = read_yaml("pre-commit-config.yaml")["repos"][0]["hooks"]
    staged = [each.name for each in folder.iterdir() if re.search(hook["files"], each.name)]
    assert staged == ["small.receipt.json"]
    run(f"{hook['entry']} {' '.join(staged)}")


@pytest.mark.parametrize("path", [EXAMPLES / "pre-commit-config.yaml", ROOT / ".pre-commit-config.yaml"])
def test_pre_commit_takes_the_configuration(path: Path) -> None:
    called(needed("pre-commit"), "validate-config", str(path))


def test_docker_stages_run_what_works_and_copy_what_is_there(folder: Path) -> None:
    text = (EXAMPLES / "Dockerfile").read_text(encoding="utf-8")
    lines = re.findall(r"^RUN (onnxcomp .*)$", text, re.MULTILINE)
    for line in lines:
        run(line)
    [copied] = re.findall(r"^COPY --from=compress (.*) \./$", text, re.MULTILINE)
    assert len(lines) == 2 and all((folder / Path(each).name).exists() for each in copied.split())
    [code] = re.findall(r'^CMD \["python", "-c", "(.*)"\]$', text, re.MULTILINE)
    called(sys.executable, "-c", code)


def test_a_model_repository_serves_the_same_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = imported("model_repository", monkeypatch)
    external = folder / "external.onnx"
    onnx.save(onnx.load("model.onnx"), external, save_as_external_data=True, location="external.data", size_threshold=0)
    for source in (folder / "small.onnx", external):
        path = module.make_repository(source, folder / "models_out", "net", version=3)
        assert path == folder / "models_out" / "net" / "3" / "model.onnx"
        inputs = {"x": np.load("samples.npz")["x"][:4]}
        ours, theirs = (onnxruntime.InferenceSession(each).run(None, inputs)[0] for each in (source, path))
        assert np.array_equal(ours, theirs)
        shutil.rmtree(folder / "models_out")


def test_triton_is_told_names_types_and_open_sizes(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    text = imported("model_repository", monkeypatch).triton_config(onnx.load("model.onnx"), "net")
    assert text.splitlines() == [
        'name: "net"',
        'backend: "onnxruntime"',
        "max_batch_size: 0",
        'input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, 16 ] } ]',
        'output [ { name: "y" data_type: TYPE_FP32 dims: [ -1, 10 ] } ]',
    ]


def test_a_hugging_face_folder_keeps_all_but_its_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder / "hub"
    (source / "onnx").mkdir(parents=True)
    (source / "config.json").write_text('{"model_type": "net"}')
    (source / "tokenizer.json").write_text("{}")
    proto = onnx.load("model.onnx")
    onnx.save(proto, source / "onnx" / "model.onnx", save_as_external_data=True, location="model.onnx_data",
              size_threshold=0)  # fmt: skip
    module = imported("huggingface_folder", monkeypatch)
    [written] = module.compress_folder(source, folder / "new", "samples.npz", "lossless")
    assert written == folder / "new" / "onnx" / "model.onnx"
    found = {each.relative_to(folder / "new").as_posix() for each in (folder / "new").rglob("*") if each.is_file()}
    assert found == {"config.json", "tokenizer.json", "onnx/model.onnx", "onnx/model.receipt.json"}
    inputs = {"x": np.load("samples.npz")["x"][:4]}
    before, after = (onnxruntime.InferenceSession(each).run(None, inputs)[0] for each in ("model.onnx", written))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)  # exact passes: float rounding only


def test_mlflow_registers_what_is_within_the_budget(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed here")
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    version = imported("mlflow_register", monkeypatch).register("model.onnx", "samples.npz", "net", recipe="lossless")
    assert version == "1"
    [run] = mlflow.search_runs(output_format="list", search_all_experiments=True)
    assert run.data.metrics["bytes_before"] == (folder / "model.onnx").stat().st_size
    loaded = mlflow.onnx.load_model("models:/net/1")
    assert [each.name for each in loaded.graph.input] == ["x"]


def test_olive_runs_the_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("olive", reason="olive-ai is not installed here")
    for name in ("olive_pass.py", "olive.json", "olive_package.json"):
        shutil.copy(EXAMPLES / name, folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    called(needed("olive"), "run", "--config", "olive.json", "--package-config", "olive_package.json")
    assert (folder / "olive_out" / "model.onnx").exists()


def test_every_example_stands_on_the_page() -> None:
    page = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    assert {each.name for each in EXAMPLES.iterdir() if each.is_file()} == set(re.findall(r"<!-- file: (\S+),", page))


def test_the_changelog_has_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert next(each for each in headings if each != "Unreleased") == version
