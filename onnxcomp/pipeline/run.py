"""One optimization under way: what it starts from, what it may spend, and how far it has come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxcomp.budget import Budget
from onnxcomp.calibration import CalibrationData
from onnxcomp.clock import clock
from onnxcomp.contract import Context, Outcome
from onnxcomp.model import Model
from onnxcomp.pipeline.history.ledger import Ledger
from onnxcomp.pipeline.history.lineage import Lineage
from onnxcomp.pipeline.history.records import entries, skipped
from onnxcomp.pipeline.model_search.timing import Course
from onnxcomp.pipeline.objective import Objective
from onnxcomp.pipeline.safety.reach import Reach
from onnxcomp.pipeline.time_budget import TimeBudget
from onnxcomp.receipt import Receipt, StepReport
from onnxcomp.recipe import Recipe, Step
from onnxcomp.target import Target
from onnxcomp.verify import Verifier

Progress = Callable[[int, int, str], None]


@dataclass
class Run:
    """The state of one optimization. reach: what the data show of each weight; None for a run without data."""

    original: Model
    recipe: Recipe
    context: Context
    budget: Budget
    verifier: Verifier
    tuner: Verifier | None  # on the calibration part; None without data
    reach: Reach | None
    data: CalibrationData
    receipt: Receipt
    progress: Progress
    time: TimeBudget = field(default_factory=TimeBudget)
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.receipt, Lineage.of(self.original))

    @property
    def current(self) -> Model:
        """The model as the steps so far have left it."""
        return self.ledger.current

    @property
    def target(self) -> Target:
        """Where models run."""
        return self.context.target or Target.of()

    @property
    def objective(self) -> Objective:
        """What the steps that choose are to save."""
        return Objective.of(self.recipe.goal, self.budget)

    @property
    def course(self) -> Course:
        """What latencies are measured on."""
        return Course(self.data, self.target)

    @property
    def deadline(self) -> float:
        """When steps must be through."""
        return self.time.deadline

    def is_over(self) -> bool:
        """Whether the deadline has come."""
        return clock() > self.deadline

    def has_time(self, step: Step) -> bool:
        """Whether there is time for an exact step; where not, the receipt says so. There always is for storing what a
        step before has lost for that."""
        if self.time.has_time_for_exact or not self.ledger.line.is_exact:
            return True
        late = f"time: {step.name} was left out, the time budget was used up"
        if late not in self.receipt.missed:
            self.receipt.missed.append(late)
        return False

    def context_of(self, step: Step, *, spare_s: float = 0.0) -> Context:
        """What the passes of a step are given. spare_s: what the step takes once they are through."""
        deadline = self.deadline - spare_s

        def progress(done: int, total: int, what: str) -> None:
            self.progress(done, total, what if what.startswith(step.name) else f"{step.name}: {what}")

        exclude = (*self.context.exclude, *step.exclude)
        return self.ledger.line.context(
            dataclasses.replace(self.context, exclude=exclude, progress=progress, deadline=deadline)
        )

    def report(
        self, name: str, fields: Mapping[str, Any], outcome: Outcome, before: Model, after: Model, started: float
    ) -> StepReport:
        """The account of a step that has just been made, entered in the receipt."""
        made = StepReport(
            rewrite=name,
            decision="kept" if outcome.changed else "nothing to do",
            parameters=dict(fields),
            bytes_before=before.size_bytes,
            bytes_after=after.size_bytes,
            seconds=clock() - started,
            changed=entries(outcome),
            skipped=skipped(outcome),
        )
        self.receipt.steps.append(made)
        return made
