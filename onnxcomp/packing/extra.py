"""The libraries of the extra ``onnxcomp[pack]``, imported when they are first needed."""

from __future__ import annotations

import importlib
from typing import Any

from onnxcomp.errors import PackError


def needed(name: str) -> Any:
    """The module of that name. Raises PackError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PackError(f"packing needs {name}, which is not installed: pip install 'onnxcomp[pack]'.") from error
