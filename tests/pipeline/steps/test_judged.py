"""What becomes of a step that makes nodes wrong: done once more, with less error in more weights, until it does not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest

from onnxcomp.pipeline.steps import judged as module
from onnxcomp.pipeline.steps.judged import judged


@dataclasses.dataclass(frozen=True)
class FakeStep:
    name: str = "a step"
    without: frozenset[str] = frozenset()

    def excluding(self, names: Collection[str]) -> FakeStep:
        return dataclasses.replace(self, without=self.without | set(names))


class Course:
    """Does a step on weights a to d, and tells which come out wrong each time, in turn."""

    def __init__(self, *over: str) -> None:
        self.over, self.done = [dict.fromkeys(each, 0.3) for each in over], list[tuple[str, str]]()
        ledger = SimpleNamespace(kept=[], take_back=lambda kept, why: self.run.ledger.kept.clear())
        receipt = SimpleNamespace(notes=[], missed=[])
        verifier = SimpleNamespace(limit=0.03, metric="divergence")
        self.run: Any = SimpleNamespace(
            progress=lambda *_: None, deadline=math.inf, ledger=ledger, receipt=receipt, verifier=verifier
        )

    def do(self, step: FakeStep, run: Any, started: float, /, *, held: Collection[str] = ()) -> None:
        self.done.append(("".join(sorted(held)), "".join(sorted(step.without))))
        changed = [SimpleNamespace(name=each) for each in sorted({*"abcd"} - step.without)]
        run.ledger.kept.append(SimpleNamespace(report=SimpleNamespace(changed=changed)))

    def off(self, run: Any, kept: int) -> dict[str, float]:
        return self.over.pop(0)

    @property
    def stands(self) -> bool:
        return bool(self.run.ledger.kept)


@pytest.mark.parametrize(
    ("over", "done", "stands"),
    [
        (("",), [("", "")], True),
        (("a", ""), [("", ""), ("a", "")], True),
        (("ab", "a", ""), [("", ""), ("ab", ""), ("abcd", "")], True),  # a has little error: what it reads is off
        (("a", "b", ""), [("", ""), ("a", ""), ("a", "b")], True),
        (("a", "b", "c", ""), [("", ""), ("a", ""), ("a", "b"), ("abcd", "b")], True),
        (("a", "a", "a", ""), [("", ""), ("a", ""), ("abcd", ""), ("abcd", "a")], True),
        (("a", "a", "a", "b"), [("", ""), ("a", ""), ("abcd", ""), ("abcd", "a")], False),
        (("a", "b", "c", "d"), [("", ""), ("a", ""), ("a", "b"), ("abcd", "b")], False),
    ],
)
def test_more_and_more_weights_get_little_error(
    monkeypatch: pytest.MonkeyPatch, over: tuple[str, ...], done: list[tuple[str, str]], stands: bool
) -> None:
    course = Course(*over)
    monkeypatch.setattr(module, "_off_nodes", course.off)
    judged(FakeStep(), course.run, course.do, mildly=course.do)  # type: ignore[type-var]
    assert (course.done, course.stands) == (done, stands) and not course.over
    assert len(course.run.receipt.notes) == len(done) - 1


@pytest.mark.parametrize(("over", "stands"), [(("a", ""), True), (("a", "b"), False)])
def test_a_step_that_cannot_be_done_mildly_leaves_weights_out(
    monkeypatch: pytest.MonkeyPatch, over: tuple[str, ...], stands: bool
) -> None:
    course = Course(*over)
    monkeypatch.setattr(module, "_off_nodes", course.off)
    judged(FakeStep(), course.run, course.do)  # type: ignore[type-var]
    assert course.done == [("", ""), ("", "a")] and course.stands is stands
