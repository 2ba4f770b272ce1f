"""What the site has beside mkdocs.yml: two pages of the root, all decisions, and pages that are in no menu yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OF_THE_ROOT = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def on_config(config: Any) -> Any:
    """Add a menu of the decisions, and one of the pages that mkdocs.yml has in none."""
    docs = Path(config.docs_dir)
    decisions = [path.relative_to(docs).as_posix() for path in sorted((docs / "decisions").glob("*.md"))]
    named = set(_pages(config.nav))
    others = [path.name for path in sorted(docs.glob("*.md")) if path.name not in named]
    config.nav += [{"More": others}] if others else []
    config.nav.append({"Decisions": decisions})
    return config


def _pages(menu: Any) -> Iterator[str]:
    """The pages that a menu of mkdocs.yml names."""
    for each in menu if isinstance(menu, list) else [menu]:
        if isinstance(each, dict):
            for below in each.values():
                yield from _pages(below)
        else:
            yield each


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages of the root, with links as they are from docs/."""
    for name, source in OF_THE_ROOT.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    return files
