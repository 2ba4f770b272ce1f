"""What a search among rewrites of the whole model goes by, in one place, so that it can be swept."""

from __future__ import annotations

from dataclasses import dataclass, field

VALUE_BYTES = 4


def values_of(size_bytes: int) -> int:
    """About how many weight values a model of so many bytes has: what building and running it once costs."""
    return max(1, size_bytes // VALUE_BYTES)


@dataclass(frozen=True)
class Ablation:
    """What the choice of nodes goes by. Gains are time after over time before, of a node or the whole.

    little_gains: from which on all such nodes are left out at once. least_gain: a node that gains more than this is
    never proposed. bordering: nodes at a border proposed in one round; behind: nodes one away from a border, with what
    stands between; worst: and nodes anywhere that are slower than before. better: a proposal must bring the latency to
    this ratio; better_growing: and one that makes the file ``growing`` times as large to this. most_values: weight
    values that all proposals may have together, each of which is built and run; fewest: proposals in any case.
    """

    rounds: int = 5
    little_gains: tuple[float, ...] = (1.0, 0.8, 0.6)
    least_gain: float = 0.6
    bordering: int = 4
    behind: int = 2
    worst: int = 2
    better: float = 0.985
    growing: float = 1.1
    better_growing: float = 0.95
    most_values: float = 5e8
    fewest: int = 4

    def most(self, size_bytes: int) -> int:
        """How many proposals may be built of a model of so many bytes."""
        return max(self.fewest, int(self.most_values // values_of(size_bytes)))


@dataclass(frozen=True)
class Tournament:
    """What a tournament goes by, in one place, so that it can be swept. Latencies are ratios to the model before.

    hopeful: a trial that is slower than the model by no more may still be faster at some nodes. near: times the latency
    of the fastest, and a trial is still looked at. finalists: in the last race, at most. as_fast: times the latency of
    the fastest, and the smaller error or the smaller file decides. harmless: of the budget; below it no error is
    smaller than another. far_faster: times the latency of the fastest within the budget, and one that breaks it is
    worth more work. far_over: times the limit, and little of a trial can be kept; then measuring its parts one by one
    may take ``hopeless_values`` weight values at most. parts: trials taken back in part, at most; each takes tens of
    evaluations. chosen_nodes: trials whose nodes are chosen one by one, at most. ablation: of that choice. spare: what
    the winner may use of the budget for passes to go ahead of it; ahead: times the latency of the best, which they must
    bring; ahead_values: weight values of a model in which they are tried at most.
    """

    hopeful: float = 1.3
    near: float = 1.15
    finalists: int = 4
    as_fast: float = 1.015
    harmless: float = 1e-3
    far_faster: float = 0.9
    far_over: float = 7.0
    hopeless_values: float = 5e8
    parts: int = 2
    chosen_nodes: int = 2
    spare: float = 0.5
    ahead: float = 0.97
    ahead_values: float = 2e6
    ablation: Ablation = field(default_factory=Ablation)
