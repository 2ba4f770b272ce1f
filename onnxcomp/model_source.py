"""A model as ONNX Runtime is given it: bytes, a file, or a header whose data lies in files anywhere.

ONNX Runtime takes external data from below one folder only, links followed: that of the model file, or one that it is
told. Told the root of the file system, the CPU provider takes it from wherever it is, mapped and not copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Referring:
    """A model whose data stays where it is.

    model: without the data. data_folder: what the locations in it start from. in_one_place: makes of it one message, or
    a file with its data beside it, for providers that read the data themselves and know no other folder.
    """

    model: bytes | Path
    data_folder: Path
    in_one_place: Callable[[], bytes | Path]


ModelSource = bytes | Path | Referring
