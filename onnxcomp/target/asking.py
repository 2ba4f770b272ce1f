"""Ask a target of what types a model's outputs are there."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from onnx import ModelProto

from onnxcomp.errors import TargetError
from onnxcomp.model import Model
from onnxcomp.runtime import Session
from onnxcomp.target.place import Target


def asking(target: Target | None, model: Model) -> Callable[[ModelProto], tuple[str, ...] | None]:
    """What tells the output types of a small model on the target, None of one that does not load; ``model`` remembers
    it."""
    key: Hashable = (asking, None if target is None else target.provider)
    memo: dict[bytes, tuple[str, ...] | None] = model.memo.setdefault(key, {})
    opened: Callable[[Any], Session] = Session if target is None else target.session

    def ask(asked: ModelProto) -> tuple[str, ...] | None:
        content = asked.SerializeToString(deterministic=True)
        if content not in memo:
            try:
                memo[content] = tuple(each.type for each in opened(content).outputs)
            except TargetError:
                memo[content] = None
        return memo[content]

    return ask
