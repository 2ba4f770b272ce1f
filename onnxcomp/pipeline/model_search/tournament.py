"""Try several rewrites on the whole model and keep the fastest that the budget bears.

1. Each trial is built on the same model. What changes nothing or does not run is out.
2. Heat: all of them take turns with the model as it was. What is no faster is out.
3. From the fastest on, each is verified. Where one breaks the budget and is faster than all that keep it, the
   step's spare trials are built; and where it would still win, it is taken back in part.
4. In the best ones, nodes that gain nothing are left out (``node_choice``).
5. Final: the best of these take turns for longer. Of those as fast as the fastest, the nearest to the original wins.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from onnxcomp.contract import Choice, Context, Outcome, Pass, Quantity, own_choice
from onnxcomp.graph.ir.query import node_key
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.model import Model
from onnxcomp.pipeline.history.lineage import Lineage
from onnxcomp.pipeline.history.records import application, title
from onnxcomp.pipeline.history.rollback import verified_part
from onnxcomp.pipeline.model_search.node_ablation import Ablation, faster_nodes
from onnxcomp.pipeline.model_search.timing import FINAL_S, Course
from onnxcomp.pipeline.objective import REACHED, Objective
from onnxcomp.pipeline.safety.reach import Reach
from onnxcomp.pipeline.safety.safe_changes import apply_safely
from onnxcomp.receipt import Application, Entry, Tried
from onnxcomp.verify import Verdict, Verifier

MIN_SPEEDUP = 0.98  # what is asked for speed must bring the latency to this ratio at the most


@dataclass(frozen=True)
class Tuning:
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


@dataclass
class Trial:
    """One rewrite of the whole model: its passes in turn, the main one perhaps at some of its nodes only.

    contexts: in which each of the passes was applied. include: the names to which the main pass was limited, None for
    all. restore: weights put back afterwards. taken: what the samples or the budget do not bear.
    """

    passes: tuple[Pass, ...]
    line: Lineage
    outcomes: list[Outcome] = field(default_factory=list)
    contexts: list[Context] = field(default_factory=list)
    include: list[str] | None = None
    restore: list[str] = field(default_factory=list)
    taken: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    ratio: float = math.inf
    lost: str = ""

    @property
    def model(self) -> Model:
        """What the passes made."""
        return self.line.current

    @property
    def main(self) -> int:
        """The position of the pass that the trial is about: the last that is not exact, else the last."""
        lossy = [index for index, each in enumerate(self.passes) if "latency" in each.effect.shrinks]
        inexact = [index for index in lossy if not self.passes[index].effect.is_exact]
        return (inexact or lossy or [len(self.passes) - 1])[-1]

    @property
    def names(self) -> list[str]:
        """What the main pass changed."""
        done = self.outcomes[self.main].changed if self.main < len(self.outcomes) else []
        return list(dict.fromkeys(each.name for each in done))

    @property
    def choice(self) -> Choice | None:
        """The sites of the main pass, None for all."""
        return None if self.include is None else own_choice(self.include)

    @property
    def is_whole(self) -> bool:
        """Whether the main pass was applied to all that it could be applied to."""
        return self.include is None and not self.restore and not self.taken

    def applications(self) -> list[Application]:
        """How to make it again."""
        made = [
            application(each, context, outcome, self.choice if index == self.main else None)
            for index, (each, context, outcome) in enumerate(
                zip(self.passes, self.contexts, self.outcomes, strict=True)
            )
        ]
        made[-1].restore = list(self.restore)
        return made

    def account(self) -> Tried:
        """The trial as the receipt has it."""
        measured = math.isfinite(self.ratio)
        verified = self.verdict is not None and math.isfinite(self.verdict.divergence)
        return Tried(
            name=title(self.passes) + ("" if self.include is None else f" at {len(self.names)} nodes"),
            outcome=self.lost or "kept",
            bytes_after=self.model.size_bytes if measured else None,
            latency_ratio=self.ratio if measured else None,
            divergence=self.verdict.divergence if verified and self.verdict is not None else None,
        )


@dataclass
class Trials:
    """All that one step tries on the model of ``line``; ``run`` gives the one to keep, or None.

    reach: what the data show of each weight; None for a run without data.
    """

    line: Lineage
    original: Model
    candidates: Sequence[tuple[Pass, ...]]
    spares: Sequence[tuple[Pass, ...]]
    context: Context
    verifier: Verifier
    tuner: Verifier | None
    reach: Reach | None
    course: Course
    objective: Objective = field(default_factory=Objective)
    deadline: float = math.inf
    tuning: Tuning = field(default_factory=Tuning)
    entered: list[Trial] = field(default_factory=list)

    @property
    def before(self) -> Model:
        """What all trials are compared with."""
        return self.line.current

    def run(self) -> Trial | None:
        """The trial to keep, None where none is faster than what there was. ``entered`` holds them all."""
        passed, broken = self._verified(self._heat(self._built(self.candidates)))
        if self._is_worth_saving(broken, passed) and not self._has_reached_goal(passed):
            more, _ = self._verified(self._heat(self._built(self.spares)))
            passed = _ranked([*passed, *more])
        for trial in broken[: self.tuning.parts]:
            if time.monotonic() < self.deadline and self._is_worth_saving([trial], passed):
                passed = _ranked([*passed, *self._part(trial)])
        if not self._has_reached_goal(passed):
            passed = _ranked([*passed, *self._with_chosen_nodes(passed)])
        return self._winner(passed)

    # --- building ---

    def _built(self, candidates: Sequence[tuple[Pass, ...]]) -> list[Trial]:
        """Those that change the model and run."""
        running: list[Trial] = []
        for index, passes in enumerate(candidates):
            self.context.progress(index, len(candidates), f"trying {title(passes)}")
            if running and time.monotonic() > self.deadline:
                self.entered.append(Trial(passes, self.line, lost="not tried: the time budget was used up"))
                continue
            trial = self._build(passes)
            self.entered.append(trial)
            if not trial.outcomes[-1].changed:
                trial.lost = _nothing_changed(passes[len(trial.outcomes) - 1], trial)
            else:
                trial.lost = self.course.fault(trial.model) or ""
            if not trial.lost:
                running.append(trial)
        return running

    def _build(
        self, passes: tuple[Pass, ...], include: Sequence[str] | None = None, like: Trial | None = None
    ) -> Trial:
        """The passes in turn, up to one that finds nothing to do, without what the samples do not license.

        include: names that the main one is limited to. like: a trial of the same passes, which says what that is.
        """
        trial = Trial(passes, self.line, include=None if include is None else list(include))
        if like is not None:
            trial.taken, trial.notes = list(like.taken), list(like.notes)
        for index, each in enumerate(passes):
            context = trial.line.context(self.context if like is None else like.contexts[index])
            choice = trial.choice if index == trial.main else None
            held = apply_safely(trial.line.current, each, context, self.reach if like is None else None, choice)
            trial.line = trial.line.after(each, held.model, held.outcome)
            trial.outcomes.append(held.outcome)
            trial.contexts.append(held.context)
            trial.taken += held.entries()
            trial.notes += held.notes()
            if not held.outcome.changed:
                break
        return trial

    # --- measuring ---

    def _heat(self, running: Sequence[Trial]) -> list[Trial]:
        """Those that are faster than what there was."""
        if not running:
            return []
        self.context.progress(0, 1, "measuring latency")
        ratios = self.course.race(self.before, {str(index): each.model for index, each in enumerate(running)})
        for index, trial in enumerate(running):
            trial.ratio = ratios[str(index)]
            if trial.ratio > MIN_SPEEDUP:
                trial.lost = "no faster"
        return [each for each in running if not each.lost]

    def _verified(self, running: Sequence[Trial]) -> tuple[list[Trial], list[Trial]]:
        """Those within the budget, and those that break it and are faster than all of these; fastest first."""
        passed: list[Trial] = []
        broken: list[Trial] = []
        for trial in _ranked(running):
            if passed and trial.ratio > self.tuning.near * passed[0].ratio and not self._is_awaited(trial, passed):
                trial.lost = "slower"
                continue
            self.context.progress(0, 1, f"verifying {title(trial.passes)}")
            trial.verdict = self.verifier.check(trial.model)
            trial.lost = "; ".join(trial.verdict.reasons)
            if trial.verdict.passed:
                passed.append(trial)
            elif not passed:
                broken.append(trial)
        return passed, broken

    def _part(self, trial: Trial) -> list[Trial]:
        """The largest part of a trial that the budget bears, if that is still faster."""
        if len(trial.names) < 2:
            return []

        def again(choice: Choice) -> tuple[Model, Outcome]:
            made = self._build(trial.passes, sorted(choice), trial)
            return made.model, made.outcomes[made.main]

        several = again if len(trial.passes) > 1 else None
        outcome, rewrite = trial.outcomes[trial.main], trial.passes[trial.main]
        rest, verdict = verified_part(
            self.before, trial.model, outcome, rewrite, trial.contexts[0], self.verifier, self.tuner, several
        )
        if not rest.kept or self.course.fault(rest.model) is not None:
            return []
        part = self._build(trial.passes, None if rest.by_value else rest.kept, trial)
        part.restore = rest.taken if rest.by_value else []
        part.line = dataclasses.replace(part.line, current=rest.model)
        part.verdict = verdict
        part.taken += rest.taken_entries()
        self.entered.append(part)
        return self._heat([part])

    # --- nodes ---

    def _with_chosen_nodes(self, running: Sequence[Trial]) -> list[Trial]:
        """The best trials once more, without the nodes that gain nothing by them; where none is faster than what
        there was, the one that is least slower: part of it may be."""
        main = open_graph(self.before).main
        nodes = {node_key(main, each) for each in main.graph.nodes}
        near = [each for each in running if each.ratio <= self.tuning.near * running[0].ratio]
        chosen = near or _ranked(each for each in self.entered if each.ratio <= self.tuning.hopeful)
        able = [each for each in chosen if nodes.issuperset(each.names) and len(each.names) > 1 and not each.restore]
        found = []
        for trial in able[: self.tuning.chosen_nodes if near else 1]:
            if time.monotonic() > self.deadline:
                break
            rebuild = functools.partial(self._at_nodes, trial)
            tell = self.context.progress
            kept = faster_nodes(self.before, trial.model, trial.names, rebuild, self.course, tell, self.tuning.ablation)
            if len(kept) < len(trial.names):
                found += self._entered_at(trial, kept)
        return found

    def _at_nodes(self, trial: Trial, names: Sequence[str]) -> Model | None:
        made = self._build(trial.passes, names, trial)
        return made.model if made.outcomes[-1].changed else None

    def _entered_at(self, trial: Trial, kept: Sequence[str]) -> list[Trial]:
        """The trial at these nodes only, where it is within the budget and faster than what there was."""
        made = self._build(trial.passes, kept, trial)
        made.taken += [Entry(name, "no faster on the target") for name in trial.names if name not in set(kept)]
        made.verdict = self.verifier.check(made.model)
        made.ratio = self.course.race(self.before, {"made": made.model})["made"]
        made.lost = "; ".join(made.verdict.reasons) or ("" if made.ratio <= MIN_SPEEDUP else "no faster")
        self.entered.append(made)
        return [] if made.lost else [made]

    # --- choosing ---

    def _has_reached_goal(self, running: Sequence[Trial]) -> bool:
        """Whether the fastest that is small enough is fast enough."""
        small = self._small_enough(running)
        if not self.objective.has_goal(Quantity.LATENCY) or not small:
            return False
        return small[0].ratio <= self._ratio_of_goal() and self._is_small(small[0])

    def _is_awaited(self, trial: Trial, passed: Sequence[Trial]) -> bool:
        """Whether a slower trial is worth verifying: any may reach a goal of latency, and none so far that of size."""
        if self.objective.has_goal(Quantity.LATENCY):
            return True
        return self._is_small(trial) and not any(self._is_small(each) for each in passed)

    def _is_small(self, trial: Trial) -> bool:
        """Whether a trial reaches the goal of size, as each does where there is none."""
        return trial.model.size_bytes <= self.objective.limit(Quantity.BYTES, self.original.size_bytes)

    def _small_enough(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those that reach the goal of size; all of them where none does."""
        return [each for each in trials if self._is_small(each)] or list(trials)

    def _is_worth_saving(self, broken: Sequence[Trial], passed: Sequence[Trial]) -> bool:
        """Whether trials that break the budget are faster by far than all that keep it."""
        return bool(broken) and not (passed and broken[0].ratio > self.tuning.far_faster * passed[0].ratio)

    def _ratio_of_goal(self) -> float:
        """What a trial's ratio must come down to for the latency goal, 0 where there is none."""
        if not self.objective.has_goal(Quantity.LATENCY):
            return 0.0
        took = self.course.milliseconds({"before": self.before, "original": self.original})
        return REACHED * self.objective.limit(Quantity.LATENCY, took["original"]) / took["before"]

    def _winner(self, running: Sequence[Trial]) -> Trial | None:
        """The fastest of the final that is small enough; of those as fast, or that reach the goal of latency, the one
        that harms least."""
        finalists = self._finalists(running)
        if not finalists:
            return None
        self.context.progress(0, 1, "measuring the fastest once more")
        rivals = {str(index): each.model for index, each in enumerate(finalists)} | {"original": self.original}
        ratios = self.course.race(self.before, rivals, seconds=FINAL_S)
        for index, trial in enumerate(finalists):
            trial.ratio = ratios[str(index)]
        fit = [each for each in finalists if each.ratio <= min(MIN_SPEEDUP, ratios["original"])]
        if not fit:
            for trial in finalists:
                trial.lost = "no faster"
            return None
        small = self._small_enough(fit)
        limit = max(self.tuning.as_fast * min(each.ratio for each in small), self._ratio_of_goal())
        best = min((each for each in small if each.ratio <= limit), key=self._harm)
        for trial in finalists:
            trial.lost = "" if trial is best else self._why_lost(trial, best, limit)
        return best

    def _finalists(self, running: Sequence[Trial]) -> list[Trial]:
        ranked = _ranked(running)
        small = self._small_enough(ranked)
        any_goal = self.objective.has_goal(Quantity.LATENCY)
        near = [each for each in small if any_goal or each.ratio <= self.tuning.near * small[0].ratio]
        for trial in ranked:
            trial.lost = "slower" if trial in small else "larger than the size asked for"
        for trial in near[: self.tuning.finalists]:
            trial.lost = ""
        return near[: self.tuning.finalists]

    def _harm(self, trial: Trial) -> tuple[float, int]:
        """How far from the original, and how large."""
        assert trial.verdict is not None
        return max(trial.verdict.energy, self.tuning.harmless * trial.verdict.limit), trial.model.size_bytes

    def _why_lost(self, trial: Trial, best: Trial, limit: float) -> str:
        """Why a finalist was not kept."""
        assert trial.verdict is not None and best.verdict is not None
        if self._is_small(best) and not self._is_small(trial):
            return "larger than the size asked for"
        if trial.ratio > limit:
            return f"latency ratio {trial.ratio:.3f}, the kept one has {best.ratio:.3f}"
        harm, least = self._harm(trial), self._harm(best)
        if harm[0] > least[0]:
            return f"as fast as the kept one, which is nearer to the original: divergence {best.verdict.divergence:.3g}"
        return "as fast as the kept one, which is smaller" if harm > least else "the same as the kept one"


def _ranked(trials: Iterable[Trial]) -> list[Trial]:
    """The fastest first."""
    return sorted(trials, key=lambda each: each.ratio)


def _nothing_changed(rewrite: Pass, trial: Trial) -> str:
    """That a pass found nothing to do, with the reason that it gave most often."""
    reasons = [each.reason for each in trial.outcomes[-1].skipped] or [each.what for each in trial.taken]
    found = Counter(reasons).most_common(1)
    return f"nothing to do for {rewrite.pass_name()}" + (f": {found[0][0]}" if found else "")
