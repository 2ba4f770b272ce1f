"""What whole trials say of the predictions: by how much an option's divergence is more or less than was predicted.

What is predicted comes from single changes on the samples of the search. Whole trials differ: what follows the choice
makes up for some errors and not for others, errors add to each other or not, and other samples judge. So the share of
the budget that a trial takes up is taken for

    spent  ~  c * sum over weights w of  exp(z_w + z_wo) * predicted divergence of the weight's option o

with a common factor c, and what is more or less of a weight, and of this option of it, is the least that explains the
trials so far (ridge regression on logarithms). With one trial all have the same factor; each further one tells more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxcomp.pipeline.weight_search.candidates import Assignment, Table

STIFFNESS = 0.05  # squared: the noise of a trial over how much the factors of weights differ, both of logarithms
STEPS, LONGEST_STEP = 12, 1.0  # of Newton's method

Floats = NDArray[np.float64]
Factors = dict[tuple[str, int | None], float]


@dataclass
class Experience:
    """Trials by now, each with the share of the budget that it took up."""

    trials: list[tuple[Assignment, float]] = field(default_factory=list)

    def note(self, assignment: Assignment, spent: float) -> None:
        """Take in a trial, once; one that failed otherwise than by its divergence says nothing."""
        if 0 < spent < math.inf and all(assignment != known for known, _ in self.trials):
            self.trials.append((assignment, spent))

    def factors(self, table: Table) -> Factors:
        """By weight and choice the share of the budget that a predicted divergence of 1 takes up; none where no trial
        tells."""
        names = list(table.options)
        predicted = np.array([[table.predicted(name, found[name]) for name in names] for found, _ in self.trials])
        if not len(predicted) or not np.isfinite(predicted).all() or not predicted.sum(axis=1).all():
            return {}
        choices = np.array([[-1 if (at := found[name].choice) is None else at for name in names]
                            for found, _ in self.trials])  # fmt: skip
        alike = 1.0 + (choices[:, None] == choices[None])  # (trials, trials, weights)
        wanted = np.log([each for _, each in self.trials])
        common = float(np.median(wanted - np.log(predicted.sum(axis=1))))
        told = _explained(predicted, wanted - common, alike)
        found = {}
        for at, name in enumerate(names):
            for option in table.options[name]:
                own = told[choices[:, at] == option.choice, at].sum()
                found[name, option.choice] = math.exp(common + told[:, at].sum() + own)
        return found


def _explained(predicted: Floats, wanted: Floats, alike: Floats) -> Floats:
    """What each trial tells of each weight (trials, weights): their sums, over trials of the same weight or option, are
    the least logarithms of factors that bring the logarithm of what is predicted of all weights near the wanted one.

    predicted: (trials, weights). wanted: (trials,). alike: (trials, trials, weights), what the two have in common.
    """
    told = np.zeros(predicted.shape)
    for _ in range(STEPS):
        log_factor = np.einsum("kw,jkw->jw", told, alike)
        now = predicted * np.exp(log_factor)
        share = now / now.sum(axis=1, keepdims=True)
        kernel = np.einsum("jw,kw,jkw->jk", share, share, alike) + STIFFNESS * np.eye(len(wanted))
        miss = wanted - np.log(now.sum(axis=1)) + (share * log_factor).sum(axis=1)
        step = share * np.linalg.solve(kernel, miss)[:, None] - told
        told = told + np.clip(step, -LONGEST_STEP, LONGEST_STEP)
    return told
