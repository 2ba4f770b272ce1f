"""The receipt as one HTML file that needs nothing else: printed, read in the dark, without a network.

    from onnxcomp import report

    report.write(receipt, "page.html")

``explanation`` says of one weight in words why it got what it got.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from jinja2 import UndefinedError

from onnxcomp.errors import RecipeError
from onnxcomp.files import Inputs, Transaction, refuse_files
from onnxcomp.receipt import Receipt
from onnxcomp.report.page import render

__all__ = ["reading", "render", "write"]


def write(
    receipt: Receipt | str | os.PathLike[str], path: str | os.PathLike[str], *, name: str = "", force: bool = False
) -> Path:
    """Write the page of a receipt, or of the receipt in a file, and give its path.

    name: what the page is called; the source model's name by default. Raises RecipeError where the file is no receipt,
    ModelError where ``path`` may not be written: it is the receipt, has no folder, or exists (without ``force``).
    """
    target = Path(path)
    if isinstance(receipt, Receipt):
        return _written(render(receipt, name=name), target, Inputs(), force=force)
    with reading(receipt) as account:
        page = render(account, name=name)
    return _written(page, target, Inputs([Path(receipt)]), force=force)


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[Receipt]:
    """The receipt in a file, for whoever shows it. Raises RecipeError where it is none, and where it holds what no run
    writes, which shows only then: a text where a number belongs, an index of nothing."""
    account = Receipt.read(path)
    try:
        yield account
    except (ArithmeticError, AttributeError, LookupError, TypeError, UndefinedError, ValueError) as error:
        raise RecipeError(f"{path}: holds what no run writes: {type(error).__name__}: {error}") from error


def _written(page: str, target: Path, inputs: Inputs, *, force: bool) -> Path:
    refuse_files([target], inputs, force=force)
    with Transaction() as outputs:
        outputs.write(target, [page.encode()])
        outputs.commit()
    return target
