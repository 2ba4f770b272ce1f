"""What was probably meant by a name that nobody knows: ``quantise-static`` -> ``quantize-static``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

ALIKE = 0.6  # of difflib's ratio; a letter or two in a word


def nearest(name: str, known: Iterable[str], *, most: int = 1, alike: float = ALIKE) -> list[str]:
    """The known names that are most like one, the likest first; case does not count."""
    lowered: dict[str, str] = {}
    for each in known:
        lowered.setdefault(each.lower(), each)
    return [lowered[each] for each in difflib.get_close_matches(name.lower(), lowered, most, alike)]


def meant(name: str, known: Iterable[str], *, alike: float = ALIKE) -> str:
    """`` Did you mean quantize-static?`` to end an error with; nothing where no name is like it."""
    found = nearest(name, known, alike=alike)
    return f" Did you mean {found[0]}?" if found else ""
