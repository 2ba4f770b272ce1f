"""What a run has kept so far, so that each kept step can be taken back, the account of it included."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from onnxcomp.model import Model
from onnxcomp.pipeline.history.lineage import Lineage
from onnxcomp.receipt import Application, Receipt, StepReport
from onnxcomp.verify import Verdict

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """A step that was kept, and how things stood before it. awaits_storage: all that it did was to change values in a
    way that a later step is to store."""

    report: StepReport
    line: Lineage
    divergence: float
    applied: int
    awaits_storage: bool


@dataclass
class Ledger:
    """The model as it is now and the steps that made it; ``divergence``: of the model from the original."""

    receipt: Receipt
    line: Lineage
    divergence: float = 0.0
    kept: list[Kept] = field(default_factory=list)

    @property
    def current(self) -> Model:
        """The model as it is now."""
        return self.line.current

    def keep(
        self,
        report: StepReport,
        line: Lineage,
        applied: Iterable[Application],
        *,
        verdict: Verdict | None = None,
        decision: str = "kept",
    ) -> None:
        """A step whose result goes on; verdict: None for an exact one, which the next check is to confirm."""
        awaits = verdict is not None and line.current.size_bytes >= self.current.size_bytes and _coded(line, self.line)
        self.kept.append(Kept(report, self.line, self.divergence, len(self.receipt.applied), awaits))
        self.line = line
        self.receipt.applied.extend(applied)
        report.decision, report.bytes_after = decision, line.current.size_bytes
        told = "exact" if verdict is None else f"divergence {verdict.divergence:.3g}"
        LOG.info("%s: %s, %d -> %d bytes, %s", report.rewrite, decision, report.bytes_before, report.bytes_after, told)
        if verdict is not None:
            self.divergence = verdict.divergence
            report.divergence, report.interval = verdict.divergence, verdict.interval

    def refuse(self, report: StepReport, reason: str) -> None:
        """A step of which nothing goes on."""
        report.decision, report.reason, report.bytes_after = "taken back", reason, self.current.size_bytes
        report.changed = []
        LOG.info("%s: taken back: %s", report.rewrite, reason)

    def take_back(self, start: int, reason: str) -> None:
        """Undo the steps kept from number ``start`` on: model, applications and what the receipt says of them."""
        undone = self.kept[start:]
        if not undone:
            return
        del self.kept[start:]
        first = undone[0]
        self.line, self.divergence = first.line, first.divergence
        del self.receipt.applied[first.applied :]
        for each in undone:
            self.refuse(each.report, reason)
            each.report.divergence = each.report.interval = None

    def waiting(self) -> int:
        """The number of the first kept step whose values wait for storage, that of all kept steps where none does."""
        return next((index for index, each in enumerate(self.kept) if each.awaits_storage), len(self.kept))


def _coded(after: Lineage, before: Lineage) -> bool:
    """Whether values were put into codes."""
    old = before.current.encodings
    return any(each is not old.get(name) for name, each in after.current.encodings.items())
