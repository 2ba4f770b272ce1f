"""What whole trials say of the predictions: by how much each weight's divergence is more or less than was predicted.

What is predicted comes from single changes on the samples of the search. Whole trials differ: what follows the choice
makes up for some errors and not for others, errors add to each other or not, and other samples judge. So the share of
the budget that a trial takes up is taken for

    spent  ~  sum over weights of  f_w * predicted divergence of the weight's option

and the factors are those nearest to one common factor that explain the trials so far (ridge regression on relative
errors). With one trial all weights have the same factor; each further one tells more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.pipeline.weight_search.candidates import Assignment, Table

STIFFNESS = 0.01  # squared: the noise of a trial over how much factors differ, relative
LEAST_FACTOR = 0.2  # of the common one


@dataclass
class Experience:
    """Trials by now, each with the share of the budget that it took up."""

    trials: list[tuple[Assignment, float]] = field(default_factory=list)

    def note(self, assignment: Assignment, spent: float) -> None:
        """Take in a trial; one that failed otherwise than by its divergence says nothing."""
        if 0 < spent < math.inf:
            self.trials.append((assignment, spent))

    def factors(self, table: Table) -> dict[str, float]:
        """By weight the share of the budget that a predicted divergence of 1 takes up; none where no trial tells."""
        names = list(table.options)
        predicted = np.array([[table.predicted(name, found[name]) for name in names] for found, _ in self.trials])
        spent = np.array([each for _, each in self.trials])
        if not len(spent) or not np.isfinite(predicted).all() or not predicted.sum(axis=1).all():
            return {}
        common = float(np.exp(np.median(np.log(spent / predicted.sum(axis=1)))))
        share = common * predicted / spent[:, None]
        rest = 1 - share.sum(axis=1)
        more = share.T @ np.linalg.solve(share @ share.T + STIFFNESS * np.eye(len(spent)), rest)
        return dict(zip(names, (common * np.maximum(1 + more, LEAST_FACTOR)).tolist(), strict=True))
