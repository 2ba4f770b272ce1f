"""What a search among rewrites of the whole model goes by, in one place, so that it can be swept."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ablation:
    """What the choice of nodes goes by. Gains are time after over time before, of a node or the whole.

    little_gains: from which on all such nodes are left out at once. least_gain: a node that gains more than this is
    never proposed. bordering: nodes at a border proposed in one round; behind: nodes one away from a border, with what
    stands between; worst: and nodes anywhere that are slower than before. better: a proposal must bring the latency to
    this ratio; better_growing: and one that makes the file ``growing`` times as large to this. most_s: seconds spent on
    proposals, beside the one under way.
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
    most_s: float = 60.0


@dataclass(frozen=True)
class Tournament:
    """What a tournament goes by, in one place, so that it can be swept. Latencies are ratios to the model before.

    hopeful: a trial that is slower than the model by no more may still be faster at some nodes. near: times the latency
    of the fastest, and a trial is still looked at. finalists: in the last race, at most. as_fast: times the latency of
    the fastest, and the smaller error or the smaller file decides. harmless: of the budget; below it no error is
    smaller than another. far_faster: times the latency of the fastest within the budget, and one that breaks it is
    worth more work. parts: trials taken back in part, at most; each takes tens of evaluations. chosen_nodes: trials
    whose nodes are chosen one by one, at most. ablation: of that choice.
    """

    hopeful: float = 1.3
    near: float = 1.15
    finalists: int = 4
    as_fast: float = 1.015
    harmless: float = 1e-3
    far_faster: float = 0.9
    parts: int = 2
    chosen_nodes: int = 2
    ablation: Ablation = field(default_factory=Ablation)
