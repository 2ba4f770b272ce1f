"""Try several rewrites on the whole model and keep the fastest that the budget tolerates.

1. Each trial is built on the same model. What changes nothing or does not run is out.
2. Heat: all of them take turns with the model as it was. What is no faster is out.
3. From the fastest on, each is verified. Where one breaks the budget and is faster than all that keep it, the
   step's fallbacks are built; and where it would still win, it is taken back in part. Neither is done in a large
   model where the budget is broken by far.
4. In the best ones, nodes that gain nothing are left out (``node_ablation``).
5. Final: the best of these take turns for longer. Of those as fast as the fastest, the nearest to the original wins.
6. Where the winner leaves half of the budget, passes go ahead of it, the mildest first, until one breaks the budget or
   gains nothing.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from onnxcomp.clock import clock
from onnxcomp.contract import Context, Quantity
from onnxcomp.graph.ir.query import node_key
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.model import Model
from onnxcomp.pipeline.history.lineage import Lineage
from onnxcomp.pipeline.history.records import title
from onnxcomp.pipeline.history.rollback import GROUPS
from onnxcomp.pipeline.in_turn import InTurn, apply_in_turn, part_of
from onnxcomp.pipeline.model_search.contender import Contender, has_parts, main_pass, nothing_changed, ranked
from onnxcomp.pipeline.model_search.node_ablation import faster_nodes
from onnxcomp.pipeline.model_search.timing import FINAL_S, HEAT_S, Course
from onnxcomp.pipeline.model_search.tuning import Tournament, values_of
from onnxcomp.pipeline.objective import REACHED, Objective
from onnxcomp.pipeline.safety.reach import Reach
from onnxcomp.receipt import Entry
from onnxcomp.recipe import Apply
from onnxcomp.verify import Verifier

LOG = logging.getLogger(__name__)

TOO_LATE = "the time budget was used up"
MIN_SPEEDUP = 0.98  # what is asked for speed must bring the latency to this ratio at the most


@dataclass
class Trials:
    """All that one step tries on the model of ``line``; ``run`` gives the one to keep, or None.

    reach: what the data show of each weight; None for a run without data.
    """

    line: Lineage
    original: Model
    candidates: Sequence[tuple[Apply, ...]]
    fallbacks: Sequence[tuple[Apply, ...]]
    context: Context
    verifier: Verifier
    tuner: Verifier | None
    reach: Reach | None
    course: Course
    ahead: Sequence[tuple[Apply, ...]] = ()
    objective: Objective = field(default_factory=Objective)
    deadline: float = math.inf
    tuning: Tournament = field(default_factory=Tournament)
    entered: list[Contender] = field(default_factory=list)
    heads: list[tuple[Apply, InTurn]] = field(default_factory=list)

    @property
    def before(self) -> Model:
        """What all trials are compared with."""
        return self.line.current

    @property
    def why_none(self) -> str:
        """Why no trial was kept: why the fastest of those that are faster lost, if any was faster."""
        lost = [each for each in self.entered if each.ratio <= MIN_SPEEDUP and each.verdict and each.verdict.reasons]
        if not lost:
            return "nothing that was tried is faster"
        fastest = min(lost, key=lambda each: each.ratio)
        assert fastest.verdict is not None
        over = ", many times over" if self._is_far_over(fastest) else ""
        why = "; ".join(fastest.verdict.reasons)
        return f"what is faster breaks the budget{over}: {title(fastest.made.passes)}: {why}"

    def run(self) -> Contender | None:
        """The trial to keep, None where none is faster than what there was. ``entered`` holds them all."""
        begun = clock()
        passed, broken = self._verified(self._heat(self._built(self.candidates)))
        if not self._is_over() and self._is_worth_saving(broken[:1], passed) and not self._has_reached_goal(passed):
            more, _ = self._verified(self._heat(self._built(self.fallbacks)))
            passed = ranked([*passed, *more])
        for trial in broken[: self.tuning.parts]:
            if not self._is_over() and self._is_worth_saving([trial], passed):
                passed = ranked([*passed, *self._part(trial)])
        if not self._has_reached_goal(passed):
            passed = ranked([*passed, *self._with_chosen_nodes(passed)])
        winner = self._winner(passed)
        left_s, took_s = self.deadline - clock(), clock() - begun
        return self._with_ahead(winner) if left_s >= took_s else winner

    def _is_over(self) -> bool:
        return clock() > self.deadline

    # --- building ---

    def _built(self, candidates: Sequence[tuple[Apply, ...]]) -> list[Contender]:
        """Those that change the model and run."""
        running: list[Contender] = []
        for index, leaves in enumerate(candidates):
            passes = [each.rewrite for each in leaves]
            self.context.progress(index, len(candidates), f"trying {title(passes)}")
            main = main_pass(passes)
            if running and self._is_over():
                made = InTurn(leaves, self.line, self.line, main)
                self.entered.append(Contender(made, lost=f"not tried: {TOO_LATE}"))
                continue
            begun = self._begun(leaves[0], candidates)
            trial = Contender(
                apply_in_turn(leaves, self.line, self.context, self.reach, limits=main, ends_idle=True, begun=begun)
            )
            self.entered.append(trial)
            if not trial.made.outcomes[-1].changed:
                trial.lost = nothing_changed(trial.made)
            else:
                trial.lost = self.course.fault(trial.model) or ""
            if not trial.lost:
                running.append(trial)
            LOG.debug("try: %s: %s", title(passes), trial.lost or "runs")
        return running

    def _begun(self, first: Apply, candidates: Sequence[tuple[Apply, ...]]) -> InTurn | None:
        """The first pass of a trial by itself, applied once for all trials that begin with it."""
        known = next((made for leaf, made in self.heads if leaf == first), None)
        if known is None and sum(leaves[0] == first for leaves in candidates) > 1:
            known = apply_in_turn((first,), self.line, self.context, self.reach, limits=(0,), ends_idle=True)
            self.heads.append((first, known))
        return known

    # --- measuring ---

    def _heat(self, running: Sequence[Contender]) -> list[Contender]:
        """Those that are faster than what there was."""
        if not running:
            return []
        self.context.progress(0, 1, "measuring latency")
        ratios = self.course.race(self.before, {str(index): each.model for index, each in enumerate(running)})
        for index, trial in enumerate(running):
            trial.ratio = ratios[str(index)]
            if trial.ratio > MIN_SPEEDUP:
                trial.lost = "no faster"
            LOG.debug("try: %s: latency ratio %.3f %s", title(trial.made.passes), trial.ratio, trial.lost)
        return [each for each in running if not each.lost]

    def _verified(self, running: Sequence[Contender]) -> tuple[list[Contender], list[Contender]]:
        """Those within the budget, and those that break it and are faster than all of these; fastest first."""
        passed: list[Contender] = []
        broken: list[Contender] = []
        for trial in ranked(running):
            if passed and trial.ratio > self.tuning.near * passed[0].ratio and not self._is_awaited(trial, passed):
                trial.lost = "slower"
                continue
            if passed and self._is_over():
                trial.lost = f"not verified: {TOO_LATE}"
                continue
            self.context.progress(0, 1, f"verifying {title(trial.made.passes)}")
            trial.verdict = self.verifier.check(trial.model)
            trial.lost = "; ".join(trial.verdict.reasons)
            LOG.debug("try: %s: %s", title(trial.made.passes), trial.verdict.in_words())
            if trial.verdict.passed:
                passed.append(trial)
            elif not passed:
                broken.append(trial)
        return passed, broken

    def _part(self, trial: Contender) -> list[Contender]:
        """The largest part of a trial that the budget tolerates, if that is still faster."""
        found = part_of(trial.made, self.verifier, self.tuner, ends_idle=True)
        if found is None or self.course.fault(found[0].model) is not None:
            return []
        part = Contender(*found)
        self.entered.append(part)
        return self._heat([part])

    # --- nodes ---

    def _with_chosen_nodes(self, running: Sequence[Contender]) -> list[Contender]:
        """The best trials once more, without the nodes that gain nothing by them; where none is faster than what
        there was, the one that is least slower: part of it may be."""
        main = open_graph(self.before).main
        nodes = {node_key(main, each) for each in main.graph.nodes}
        near = [each for each in running if each.ratio <= self.tuning.near * running[0].ratio]
        hopeful = (each for each in self.entered if each.ratio <= self.tuning.hopeful and not self._is_hopeless(each))
        chosen = near or ranked(hopeful)
        able = [each for each in chosen if nodes.issuperset(each.made.names) and has_parts(each.made)]
        found = []
        for trial in able[: self.tuning.chosen_nodes if near else 1]:
            if self._is_over():
                break
            rebuild = functools.partial(self._at_nodes, trial)
            tell = self.context.progress
            names, tuning = trial.made.names, self.tuning.ablation
            kept = faster_nodes(self.before, trial.model, names, rebuild, self.course, tell, tuning, self.deadline)
            if len(kept) < len(names):
                found += self._entered_at(trial, kept)
        return found

    def _at_nodes(self, trial: Contender, names: Sequence[str]) -> Model | None:
        made = trial.made.again(names, ends_idle=True)
        return made.model if made.outcomes[-1].changed else None

    def _entered_at(self, trial: Contender, kept: Sequence[str]) -> list[Contender]:
        """The trial at these nodes only, where it is within the budget and faster than what there was."""
        made = trial.made.again(kept, ends_idle=True)
        made.taken += [Entry(name, "no faster on the target") for name in trial.made.names if name not in set(kept)]
        verdict = self.verifier.check(made.model)
        ratio = self.course.race(self.before, {"made": made.model})["made"]
        lost = "; ".join(verdict.reasons) or ("" if ratio <= MIN_SPEEDUP else "no faster")
        at_nodes = Contender(made, verdict, ratio, lost)
        self.entered.append(at_nodes)
        return [] if lost else [at_nodes]

    # --- choosing ---

    def _has_reached_goal(self, running: Sequence[Contender]) -> bool:
        """Whether the fastest that is small enough is fast enough."""
        small = self._small_enough(running)
        if not self.objective.has_goal(Quantity.LATENCY) or not small:
            return False
        return small[0].ratio <= self._ratio_of_goal() and self._is_small(small[0])

    def _is_awaited(self, trial: Contender, passed: Sequence[Contender]) -> bool:
        """Whether a slower trial is worth verifying: any may reach a goal of latency, and none so far that of size."""
        if self.objective.has_goal(Quantity.LATENCY):
            return True
        return self._is_small(trial) and not any(self._is_small(each) for each in passed)

    def _is_small(self, trial: Contender) -> bool:
        """Whether a trial reaches the goal of size, as each does where there is none."""
        return trial.model.size_bytes <= self.objective.limit(Quantity.BYTES, self.original.size_bytes)

    def _small_enough(self, trials: Sequence[Contender]) -> list[Contender]:
        """Those that reach the goal of size; all of them where none does."""
        return [each for each in trials if self._is_small(each)] or list(trials)

    def _is_worth_saving(self, broken: Sequence[Contender], passed: Sequence[Contender]) -> bool:
        """Whether a trial that breaks the budget is faster by far than all that keep it, and not hopeless."""
        if not broken or self._is_hopeless(broken[0]):
            return False
        return not (passed and broken[0].ratio > self.tuning.far_faster * passed[0].ratio)

    def _is_hopeless(self, trial: Contender) -> bool:
        """Whether the trial breaks the budget by far, and measuring its parts takes more than it is worth."""
        parts = min(GROUPS, len(trial.made.names))
        is_costly = parts * values_of(self.original.size_bytes) > self.tuning.hopeless_values
        return is_costly and trial.verdict is not None and self._is_far_over(trial)

    def _is_far_over(self, trial: Contender) -> bool:
        """Whether the trial loses many times what it may. One that does not run, or gives no numbers, is not: that can
        be for a single node's sake."""
        assert trial.verdict is not None
        lost = [(trial.verdict.divergence, trial.verdict.limit), *filter(None, [trial.verdict.beside])]
        return any(math.isfinite(value) and value > self.tuning.far_over * limit > 0 for value, limit in lost)

    def _ratio_of_goal(self) -> float:
        """What a trial's ratio must come down to for the latency goal, 0 where there is none."""
        if not self.objective.has_goal(Quantity.LATENCY):
            return 0.0
        took = self.course.milliseconds({"before": self.before, "original": self.original})
        return REACHED * self.objective.limit(Quantity.LATENCY, took["original"]) / took["before"]

    def _winner(self, running: Sequence[Contender]) -> Contender | None:
        """The fastest of the final that is small enough; of those as fast, or that reach the goal of latency, the one
        that harms least."""
        finalists = self._finalists(running)
        if not finalists:
            return None
        self.context.progress(0, 1, "measuring the fastest once more")
        rivals = {str(index): each.model for index, each in enumerate(finalists)} | {"original": self.original}
        ratios = self.course.race(self.before, rivals, seconds=HEAT_S if self._is_over() else FINAL_S)
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

    # --- ahead of the winner ---

    def _with_ahead(self, winner: Contender | None) -> Contender | None:
        """The winner behind the strongest of the passes ahead that gain by it within the budget, or as it is. Not in
        large models: a cut takes as long there as the whole race."""
        best = winner
        if values_of(self.before.size_bytes) > self.tuning.ahead_values:
            return winner
        for leaves in self.ahead:
            if self._is_over() or (winner is not None and (self._is_near_budget(winner) or winner.made.restore)):
                break
            if best is not None and self._has_reached_goal([best]):
                break
            found = self._ahead_of(leaves, winner, best)
            if found is None:
                break
            if best is not None:
                best.lost = "slower"
            best = found
        return best

    def _is_near_budget(self, winner: Contender) -> bool:
        assert winner.verdict is not None
        return winner.verdict.quadratic_divergence > self.tuning.spare * winner.verdict.limit

    def _ahead_of(
        self, leaves: tuple[Apply, ...], winner: Contender | None, best: Contender | None
    ) -> Contender | None:
        """The winner, at its nodes, behind these passes, where that is within the budget and faster than the best."""
        built = self._built([(*leaves, *(winner.made.leaves if winner is not None else ()))])
        if not built:
            return None
        trial = built[0]
        if winner is not None and winner.made.include is not None:
            trial.made = trial.made.again(winner.made.include, ends_idle=True)
        rivals = {"made": trial.model} | ({} if best is None else {"best": best.model})
        ratios = self.course.race(self.before, rivals, seconds=FINAL_S)
        trial.ratio = ratios["made"]
        if best is not None:
            best.ratio = ratios["best"]
        if trial.ratio > min(MIN_SPEEDUP, self.tuning.ahead * ratios.get("best", math.inf)):
            trial.lost = "no faster" if best is None else "slower"
            return None
        trial.verdict = self.verifier.check(trial.model)
        trial.lost = "; ".join(trial.verdict.reasons)
        return None if trial.lost else trial

    def _finalists(self, running: Sequence[Contender]) -> list[Contender]:
        best_first = ranked(running)
        small = self._small_enough(best_first)
        any_goal = self.objective.has_goal(Quantity.LATENCY)
        near = [each for each in small if any_goal or each.ratio <= self.tuning.near * small[0].ratio]
        for trial in best_first:
            trial.lost = "slower" if trial in small else "larger than the size asked for"
        for trial in near[: self.tuning.finalists]:
            trial.lost = ""
        return near[: self.tuning.finalists]

    def _harm(self, trial: Contender) -> tuple[float, int]:
        """How far from the original, and how large."""
        assert trial.verdict is not None
        least = self.tuning.harmless * trial.verdict.limit
        return max(trial.verdict.quadratic_divergence, least), trial.model.size_bytes

    def _why_lost(self, trial: Contender, best: Contender, limit: float) -> str:
        """Why a finalist was not kept."""
        assert trial.verdict is not None and best.verdict is not None
        if self._is_small(best) and not self._is_small(trial):
            return "larger than the size asked for"
        if trial.ratio > limit:
            return "slower"
        harm, least = self._harm(trial), self._harm(best)
        if harm[0] > least[0]:
            own = f"error {trial.verdict.divergence:.3g}, the kept one's is {best.verdict.divergence:.3g}"
            return f"as fast within noise; {own}"
        more = trial.model.size_bytes / best.model.size_bytes - 1
        return f"as fast within noise; {100 * more:.2g}% more bytes" if harm > least else "the same as the kept one"
