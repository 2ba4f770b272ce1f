"""What the site has beside the pages of docs/: two pages of the repository's root, and a menu of all decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OF_THE_ROOT = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def on_config(config: Any) -> Any:
    """Add a menu of the decisions."""
    docs = Path(config.docs_dir)
    decisions = [path.relative_to(docs).as_posix() for path in sorted((docs / "decisions").glob("*.md"))]
    config.nav.append({"Decisions": decisions})
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages of the root, with links as they are from docs/."""
    for name, source in OF_THE_ROOT.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    return files
