"""Rounds of passes, each judged when it is through: the first that breaks the budget is the last."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from onnxcomp.pipeline.run import Run
from onnxcomp.pipeline.steps.dispatch import perform
from onnxcomp.pipeline.steps.judged import judged
from onnxcomp.pipeline.steps.sequential import judge_together
from onnxcomp.recipe import Repeat, Sequential


@perform.register
def perform_repeat(step: Repeat, run: Run) -> None:
    """Do one round after the other, each on what the one before it left, until one is taken back."""
    for number, each in enumerate(step.rounds, 1):
        done = len(run.receipt.steps)
        given = {key: values[number - 1] for key, values in step.schedule.items()}
        judged(each, run, functools.partial(_round, number, given))
        reports = run.receipt.steps[done:]
        if not reports:  # there was no time
            return
        if reports[-1].decision == "taken back":
            rest = ", the rounds after it were not tried" if number < len(step.rounds) else ""
            run.receipt.notes.append(f"{step.name}: round {number} was taken back{rest}: {reports[-1].reason}")
            return


def _round(number: int, given: Mapping[str, Any], step: Sequential, run: Run, started: float) -> None:
    """A round whole or not at all, under its number and the values that its fields are given."""
    report = judge_together(step, run, started, in_part=False)
    values = ", ".join(f"{key}={value}" for key, value in given.items())
    report.rewrite = f"round {number}{f' ({values})' if values else ''}: {step.name}"
    report.parameters = dict(given)
