"""Text that names in a file cannot turn into anything else: neither commands to a terminal nor to a reader's eye."""

from __future__ import annotations

import re

# C0, DEL and C1; marks that turn the direction of text; what is no character; halves of surrogate pairs.
UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufdd0-\ufdef\ufeff\ufff9-\uffff\ud800-\udfff]"
)


def plain(text: str) -> str:
    """The text with what cannot be seen written out: ``\\x1b``, ``\\u202e``."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
