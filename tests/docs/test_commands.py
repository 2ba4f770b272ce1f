"""Every command of the pages is one that works: its options exist, and it is run where a reader would run it."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from onnxcomp.cli import commands
from onnxcomp.recipe import Recipe
from tests.docs.blocks import COMMAND, ROOT, Block, all_blocks, blocks, pages
from tests.docs.conftest import environment, leave_costs_out

BLOCKS = all_blocks()
# Whose Python is run by tests that know what it is about.
OF_OTHER_TESTS = {"CONTRIBUTING.md", "docs/plugins.md", "docs/pipelines.md", "docs/python.md"}
DEFAULT_RESULT = "model.opt.*"  # of commands that name no output
SPECIAL = set("|&;<>$*'\"")
PAGES = [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages()]
NOT_RUN = [pytest.param(each, id=each.place) for each in BLOCKS if "not run" in each.marks]
IS_POSIX = os.name == "posix" and shutil.which("bash") is not None
has_bash = pytest.mark.skipif(not IS_POSIX, reason="there is no shell to run the pages' commands")


def test_commands_stand_in_blocks_that_are_run() -> None:
    untold = [each for each in BLOCKS if not each.language]
    loose = [each.place for each in untold if any(COMMAND.match(line) for line in each.text.splitlines())]
    assert not loose, "say what these are: sh, or text for what nobody types"


def test_no_page_has_the_same_file_twice_by_accident() -> None:
    named = [(each.page, each.title) for each in BLOCKS if each.title]
    assert len(named) == len(set(named))


@pytest.mark.parametrize("block", [pytest.param(each, id=each.place) for each in BLOCKS if each.is_shell])
def test_options_exist(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click.Command, "invoke", lambda self, ctx: None)  # parsed, not done
    for line in block.commands():
        words = line.split(" > ")[0]
        if words.startswith("onnxcomp "):
            result = CliRunner().invoke(commands, shlex.split(words)[1:], prog_name="onnxcomp")
            assert result.exit_code == 0, f"{block.place}: {line}\n{result.output}"


def test_targets_of_make_exist() -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    sources = [ROOT / ".ci" / "run", *(ROOT / ".github" / "workflows").glob("*.yml")]
    lines = [line for path in sources for line in path.read_text(encoding="utf-8").splitlines()]
    lines += [line for block in BLOCKS if block.is_shell for line in block.commands()]
    found = [words for line in lines for words in re.findall(r"(?:^|run: )make ([a-z -]+)", line)]
    named = {each for words in found for each in words.split()}
    assert "test" in named and named <= known


@pytest.mark.parametrize("block", NOT_RUN)
def test_what_is_not_run_says_why(block: Block) -> None:
    assert len(block.marks["not run"]) > 10, f"{block.place}: say why"
    pytest.skip(f"{block.place} is not run: {block.marks['not run']}")


@has_bash
@pytest.mark.parametrize("page", PAGES)
def test_quick_commands_work(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_costs_out(monkeypatch)
    run_page(page, folder, lambda block: "slow" not in block.marks)


SLOW = {each.page for each in BLOCKS if "slow" in each.marks}


@has_bash
@pytest.mark.slow
@pytest.mark.parametrize("page", [each for each in PAGES if each.values[0] in SLOW])
def test_all_commands_work(page: Path, folder: Path) -> None:
    run_page(page, folder, lambda block: True)


def run_page(page: Path, folder: Path, wanted: Callable[[Block], bool]) -> None:
    """Do what a reader does, from the top of the page down."""
    loaded = set(sys.modules)
    try:
        for block in blocks(page):
            if "not run" not in block.marks and (block.title or wanted(block)):
                _follow(block, folder)
    finally:
        for name in set(sys.modules) - loaded:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def _follow(block: Block, folder: Path) -> None:
    for path in folder.glob(DEFAULT_RESULT):  # of an example before this one, which a reader would replace
        path.unlink()
    if block.title:
        path = folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        if "needs" in block.marks:
            _need(block)
            for path in (*folder.glob("*.onnx"), *folder.glob("*.receipt.json")):
                path.unlink()  # such a page begins with a model of its own
            _shell(f"python {block.title}", block)
    elif block.is_shell:
        for line in block.commands():
            _run(line, block)
    elif block.language == "python" and block.page.relative_to(ROOT).as_posix() not in OF_OTHER_TESTS:
        exec(compile(block.text, block.place, "exec"), {"__name__": "__main__"})
    elif block.language == "toml" and "[[step]]" in block.text:
        Recipe.from_dict(tomllib.loads(block.text), name=block.place)


def _need(block: Block) -> None:
    """Skip the rest of the page where what a script imports is not installed."""
    names = [each.strip() for each in block.marks["needs"].split(",")]
    missing = [each for each in names if importlib.util.find_spec(each) is None]
    if missing:
        pytest.skip(f"{block.place} needs {', '.join(missing)}, which this environment does not have")


def _run(line: str, block: Block) -> None:
    if line.startswith("onnxcomp ") and not SPECIAL & set(line):
        result = CliRunner().invoke(commands, shlex.split(line)[1:], prog_name="onnxcomp")
        assert result.exit_code == 0, f"{block.place}: {line}\n{result.output}"
    else:
        _shell(line, block)


def _shell(line: str, block: Block) -> None:
    """Run a line as a shell does, with this environment's commands first."""
    done = subprocess.run(
        ["bash", "-ec", line], check=False, capture_output=True, text=True, timeout=300, env=environment()
    )
    assert done.returncode == 0, f"{block.place}: {line}\n{done.stdout}{done.stderr}"
