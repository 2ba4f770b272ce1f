"""What was probably meant."""

from __future__ import annotations

import pytest

from onnxcomp.nearest import meant, nearest

NAMES = ["quantize-static", "quantize-dynamic", "optimize", "Inspect"]


@pytest.mark.parametrize(
    ("name", "found"), [("optimise", "optimize"), ("quantise-static", "quantize-static"), ("INSPEKT", "Inspect")]
)
def test_a_letter_or_two_off_is_found(name: str, found: str) -> None:
    assert meant(name, NAMES) == f" Did you mean {found}?"


def test_what_is_like_nothing_gets_no_hint() -> None:
    assert meant("zzz", NAMES) == "" and nearest("zzz", NAMES) == []


def test_the_likest_comes_first() -> None:
    assert nearest("quantize-statc", NAMES, most=2) == ["quantize-static", "quantize-dynamic"]
