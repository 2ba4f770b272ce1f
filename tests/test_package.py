"""What pip installs: the wheel is built, installed into an empty folder and used from somewhere else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEEDS_TORCH = "onnxcomp.training.torch_graph."  # what the extra `train` is for
SKIPPED = shutil.ignore_patterns("__pycache__", "*.pyc")


def run(*command: str, folder: Path, **environment: str) -> str:
    """Run a command and give its standard output; its errors are the test's message."""
    environment = {**os.environ, **environment}
    done = subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy: a build in place would pick up what an earlier build left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("onnxcomp", "passes"):
        shutil.copytree(ROOT / name, source / name, ignore=SKIPPED)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", str(folder), str(source), folder=folder)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel, without dependencies, into an empty folder."""
    target = tmp_path_factory.mktemp("installed")
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target),
        str(wheel), folder=target,
    )  # fmt: skip
    return target


def source_files() -> set[str]:
    """List the files of onnxcomp/ and passes/ under the names that they are installed with."""
    found = set()
    for folder, prefix in (("onnxcomp", "onnxcomp"), ("passes", "onnxcomp/passes")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(f"{prefix}/{path.relative_to(ROOT / folder).as_posix()}")
    return found


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == source_files()
    assert "onnxcomp/py.typed" in packed


def test_wheel_names_its_licence_and_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [info] = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = archive.read(f"{info}/METADATA").decode()
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert "License-Expression: Apache-2.0" in metadata
    assert "onnxcomp = onnxcomp.cli:main" in entry_points


def test_installed_package_finds_its_passes_and_presets(installed: Path, tmp_path: Path) -> None:
    code = (
        "import importlib, importlib.resources as r, onnxcomp\n"
        "from onnxcomp.registry import get_pass, pass_names\n"
        "import onnxcomp.passes\n"
        "print(onnxcomp.__file__); print(onnxcomp.passes.__file__)\n"
        "presets = r.files('onnxcomp') / 'presets'\n"
        "print(' '.join(sorted(p.name for p in presets.iterdir())) if presets.is_dir() else '')\n"
        "print(' '.join(pass_names()))\n"
        "[get_pass(name) for name in pass_names()]\n"
    )
    lines = run(sys.executable, "-c", code, folder=tmp_path, PYTHONPATH=str(installed)).splitlines()
    assert Path(lines[0]) == installed / "onnxcomp" / "__init__.py"
    assert Path(lines[1]) == installed / "onnxcomp" / "passes" / "__init__.py"
    assert lines[2].split() == sorted(path.name for path in (ROOT / "onnxcomp" / "presets").glob("*.toml"))
    names = {path.stem.replace("_", "-") for path in (ROOT / "passes").glob("[!_]*.py")}
    assert set(lines[3].split()) == names


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The python of an environment that has what `pip install onnxcomp` brings and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "fresh", folder=folder)
    [python] = [path for path in folder.glob("fresh/*/python*") if path.name in {"python", "python.exe"}]
    run(str(python), "-m", "pip", "install", "--quiet", str(wheel), folder=folder)
    return str(python)


@pytest.mark.slow
def test_every_module_imports_with_the_declared_dependencies_alone(fresh: str, tmp_path: Path) -> None:
    """A fresh environment has no test tools, so an import of one, or of an undeclared package, shows."""
    code = (
        "import importlib, pkgutil, onnxcomp\n"
        "names = [m.name for m in pkgutil.walk_packages(onnxcomp.__path__, 'onnxcomp.')]\n"
        f"names = [each for each in names if '__main__' not in each and not each.startswith({NEEDS_TORCH!r})]\n"
        "print(*[importlib.import_module(name).__name__ for name in names])\n"
    )
    imported = set(run(fresh, "-c", code, folder=tmp_path).split())
    modules = {file.removesuffix(".py").replace("/", ".") for file in source_files() if file.endswith(".py")}
    names = {name.removesuffix(".__init__") for name in modules}
    of_an_extra = {each for each in names if each.startswith(NEEDS_TORCH)}
    assert of_an_extra and imported == names - of_an_extra - {"onnxcomp", "onnxcomp.__main__"}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "data"), [("lenet5", "mnist_calib"), ("resnet8", "resnet8_calib")])
def test_the_base_install_distils(fresh: str, tmp_path: Path, model: str, data: str) -> None:
    missing = "import importlib.util as u; print(u.find_spec('torch'))"
    assert run(fresh, "-c", missing, folder=tmp_path).strip() == "None"
    models = ROOT / "models"
    samples = str(models / f"{data}.npz")
    run(
        fresh, "-m", "onnxcomp", "distill", str(models / f"{model}.onnx"), "--student", "width=0.5", "--epochs", "30",
        "--calib-data", samples, "--train-data", samples, "-o", "student.onnx", folder=tmp_path,
    )  # fmt: skip
    steps = json.loads((tmp_path / "student.receipt.json").read_text())["steps"]
    trained = [each["details"] for step in steps for each in step["changed"] if "loss_after" in each["details"]]
    assert trained and all(each["loss_after"] < each["loss_before"] for each in trained)
    assert (tmp_path / "student.onnx").stat().st_size < 0.7 * (models / f"{model}.onnx").stat().st_size
