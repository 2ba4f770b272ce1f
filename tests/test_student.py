"""Students of a teacher: the words that say which, and the recipe that makes and trains them."""

from __future__ import annotations

import pytest

from onnxcomp.errors import ParameterError
from onnxcomp.recipe.sequential import Sequential
from onnxcomp.recipe.student import StudentShape, distilling


@pytest.mark.parametrize(("text", "shape"), [
    ("width=0.5", StudentShape(width=0.5)),
    (" depth=0.75 , separable ", StudentShape(depth=0.75, separable=True)),
    ("width=1,depth=.5", StudentShape(depth=0.5)),
    ("", StudentShape()),
])  # fmt: skip
def test_words_of_a_shape(text: str, shape: StudentShape) -> None:
    assert StudentShape.parse(text) == shape


@pytest.mark.parametrize(("text", "reason"), [
    ("wide", "got 'wide'"), ("width", "got 'width'"), ("width=half", "got 'width=half'"), ("separable=1", "got"),
    ("width=0", "above 0"), ("depth=1.5", "at most 1"), ("width=0.5,width=0.5", "twice"), ("width=nan", "above 0"),
])  # fmt: skip
def test_refuses_other_words(text: str, reason: str) -> None:
    with pytest.raises(ParameterError, match=reason):
        StudentShape.parse(text)


def test_what_is_cut_is_judged_with_the_training() -> None:
    recipe = distilling(StudentShape(width=0.25, depth=0.5, separable=True), epochs=3.0)
    last = recipe.steps[-1]
    assert isinstance(last, Sequential)
    assert last.verify == "end"
    told = [(each.pass_name(), each) for each in last.passes]
    assert [name for name, _ in told] == ["prune-blocks", "prune-heads", "prune-channels", "factorize-conv", "finetune"]
    fields = dict(told)
    assert fields["prune-blocks"].ratio == 0.5
    assert fields["prune-heads"].ratio == fields["prune-channels"].ratio == 0.75
    assert fields["factorize-conv"].decomposition == "depthwise"
    assert fields["finetune"].epochs == 3.0


def test_a_student_that_is_given_is_only_trained() -> None:
    assert [each.pass_name() for each in distilling(StudentShape()).steps[-1].rewrites] == ["finetune"]
