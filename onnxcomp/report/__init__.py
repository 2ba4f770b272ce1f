"""The receipt as one HTML file that needs nothing else: printed, read in the dark, without a network.

    from onnxcomp import report

    report.write(receipt, "page.html")

``reasons`` and what is beside it say why a weight got what it got, in words, for any other place too.
"""

from __future__ import annotations

import os
from pathlib import Path

from onnxcomp.files import Inputs, Transaction, refuse_files
from onnxcomp.receipt import Receipt
from onnxcomp.report.page import render

__all__ = ["render", "write"]


def write(
    receipt: Receipt | str | os.PathLike[str], path: str | os.PathLike[str], *, name: str = "", force: bool = False
) -> Path:
    """Write the page of a receipt, or of the receipt in a file, and give its path.

    name: what the page is called; the source model's name by default. Raises RecipeError where the file is no receipt,
    ModelError where ``path`` may not be written: it is the receipt, has no folder, or exists (without ``force``).
    """
    target = Path(path)
    read = [] if isinstance(receipt, Receipt) else [Path(receipt)]
    account = receipt if isinstance(receipt, Receipt) else Receipt.read(receipt)
    refuse_files([target], Inputs(read), force=force)
    with Transaction() as outputs:
        outputs.write(target, [render(account, name=name).encode()])
        outputs.commit()
    return target
