"""What a search of strengths goes by, in one place, so that it can be swept."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """The numbers of one search; errors are relative and squared.

    What is measured
        probe_error: at which a weight's influence is measured, that of 4 to 5 bits. probed_weights: the largest ones;
        the rest is a small share of the bytes. most_evaluations: single changes measured, at most; evaluated_values:
        weight values that all measured models may have together. probed_values: the same of the first change of each
        weight; where that is too few, groups of neighbours are changed, at least fewest_probes. opened_nodes: nodes
        that the models measured may have together, for either. measured_errors: those outside are harmless or hopeless.
        dominating: an option of more cost and this many times the error is never taken. few_affected: of the samples
        that see a change of all weights; fewer have their own part of the limit. settled_by:
        options of a weight, at least, whose measurements are held against each other. own_harm: by which the logarithms
        of their divergences for their errors truly differ, at least.

    How strengths are chosen
        shortlisted: limits, relative to the one that is asked for, whose options are fitted to data. alike: bytes and
        errors of options that may change places then. rung: of bytes, at least, between two options that are taken
        beside these where coded bytes count, and of weights with a ``heavy`` share of all bytes. pruned: share
        of zeros from which on they are a mask; data then leave ``compensated`` of the error that they leave of a
        weight without one, since what stays makes up for what goes. pruned_within: of weights over pruned_bytes, whose
        pruned options take long to fit, those that limits up to this one take, and likewise all options where the
        weights have over large_bytes. corrections: whole assignments measured
        on the way to the limit. descents: single changes tried on a whole assignment, at most; one for each dozen of
        evaluations. fewest_moves: tried on an assignment with all that follows; one for each 16 evaluations.
        least_move: of all cost, what a change should save for its price alone to count. carrying_share: of the
        predicted divergence; a weight that has it is dealt with alone. carried: of a divergence, at most, is left
        without the weight that carries it.

    How a budget is spent
        recovered: of the search's own limit, where to begin when passes follow that bring the outputs nearer again.
        learned: of the trials with all that follows, those of assignments that trials so far promise, then single
        changes. aimed: shares of the budget that such an assignment should take up, the next where there is none that
        is new: less first, and more where much of the budget is left, since what fails tells more.
        nearly: of the limit; with such passes no stronger one is tried. enough: of the budget, the same without.
        least_spent: of the budget, that a result is counted to take up where single changes follow. uncertain: of the
        predicted divergence; single changes are tried that should go so far over the budget. most_tightened: of a
        limit, at least, is left after a failure. limits_tried: those of a search that end in an assignment known
        already cost next to nothing. stronger: by what a limit grows where the budget has another unit. close: a limit
        this close to one that failed is not worth another try. surprising: times the limit of the search; what was
        measured within it and is far beyond has its own cause. less_error: of what carried a failure, at most, is left
        to a weight at first. unforeseen: times what was predicted of a weight; with less, a stricter limit deals with
        it. held_back: times that one weight is sought for that, at most; each takes a dozen evaluations.
        promising: of the cost without pruned options, what these must leave, at most, by prediction and in the end.
        rewritten: of the budget that is left, what weights that are rewritten in another form may take up alone.
        eased: milder assignments timed, at most, where a goal of latency is reached.
    """

    probe_error: float = 0.01
    probed_weights: int = 160
    most_evaluations: int = 256
    evaluated_values: int = 5 * 10**8
    probed_values: int = 2 * 10**9
    fewest_probes: int = 12
    opened_nodes: int = 150_000
    measured_errors: tuple[float, float] = (1e-4, 0.3)
    dominating: float = 1.5
    few_affected: float = 1 / 3
    own_harm: float = 0.15
    settled_by: int = 3

    shortlisted: tuple[float, ...] = tuple(2.0**power for power in range(-1, 6))
    alike: tuple[float, float] = (1.08, 2.0)
    rung: float = 1.15
    heavy: float = 0.2
    pruned: float = 0.4
    compensated: float = 0.25
    pruned_within: float = 8.0
    pruned_bytes: int = 2**21
    large_bytes: int = 2**25
    corrections: int = 6
    descents: int = 20
    fewest_moves: int = 3
    least_move: float = 0.01
    carrying_share: float = 0.3
    carried: float = 0.5

    recovered: float = 2.0
    learned: float = 2 / 3
    aimed: tuple[float, ...] = (1.0, 0.96, 0.92, 0.85, 1.1, 1.25)
    nearly: float = 0.9
    enough: float = 0.75
    least_spent: float = 0.1
    uncertain: float = 0.05
    most_tightened: float = 0.3
    limits_tried: int = 24
    stronger: float = 2.0
    close: float = 1.15
    surprising: float = 1.5
    less_error: float = 0.1
    unforeseen: float = 3.0
    held_back: int = 4
    promising: float = 0.97
    rewritten: float = 0.5
    eased: int = 6
