"""Another revision of this repository, in a work tree and an environment of its own."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIGITS = 8


def short_hash(content: bytes) -> str:
    """Enough of a SHA-256 to tell contents apart."""
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def version(package: str) -> str:
    """The version that is installed."""
    return metadata.version(package)


def described(revision: str) -> str:
    """The commit of a revision, shortened; of the one checked out, with a mark where files differ from it."""
    if revision == "HEAD":
        return _git("describe", "--always", "--dirty", f"--abbrev={DIGITS}", "--exclude=*")
    return _git("rev-parse", f"--short={DIGITS}", f"{revision}^{{commit}}")


def environment(revision: str, folder: Path) -> str:
    """The Python of an environment with that revision, and with the versions of all else that are installed here.

    folder: where work tree and environment go, and stay for the next time.
    """
    commit = described(revision)
    tree, venv = folder / f"tree-{commit}", folder / f"venv-{commit}"
    python = venv / "bin" / "python"
    if not tree.exists():
        _git("worktree", "prune")
        _git("worktree", "add", "--detach", str(tree), commit)
    if not (venv / "ready").exists():
        same = folder / f"constraints-{commit}.txt"
        same.write_text("".join(f"{name}=={found}\n" for name, found in sorted(_others().items())))
        _run(sys.executable, "-m", "venv", str(venv))
        _run(str(python), "-m", "pip", "install", "-qq", "--constraint", str(same), "--editable", str(tree))
        (venv / "ready").touch()
    return str(python)


def _others() -> dict[str, str]:
    """Name -> version of what is installed here beside this package."""
    found = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    return {name: each for name, each in found.items() if name not in ("onnxcomp", "pip", "setuptools")}


def _git(*arguments: str) -> str:
    return _run("git", "-C", str(ROOT), *arguments)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
