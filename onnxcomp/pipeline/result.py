"""What an optimization gives: the model and the account of how it came about."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxcomp.files import Transaction, refuse_files
from onnxcomp.judgement import is_exact
from onnxcomp.model import Model, refuse_outputs, stage, stale_data
from onnxcomp.pipeline.reports.account import headline, rows
from onnxcomp.receipt import Receipt
from onnxcomp.shown import Row, Shown


@dataclass(repr=False)
class Result(Shown):
    """The optimized model and the account of how it came about."""

    model: Model
    receipt: Receipt

    @property
    def size_bytes(self) -> int:
        """Bytes of the result, its external data included."""
        return int(self.receipt.result["bytes"])

    @property
    def times_smaller(self) -> float:
        """Bytes of the original over those of the result."""
        return float(self.receipt.source["bytes"]) / max(self.size_bytes, 1)

    @property
    def passed(self) -> bool:
        """Whether the result is within the accuracy budget and every goal was met; not where that was not judged, as on
        random inputs of what is not exact."""
        verdict, is_judged = self.receipt.verdict, not self.receipt.data["random"] or is_exact(self.receipt)
        return bool(verdict.get("passed")) and verdict.get("verified", True) and is_judged and not self.receipt.missed

    @property
    def divergence(self) -> float | None:
        """How far the outputs are from the original's, in the unit of the metric; None where nothing was measured."""
        value = self.receipt.verdict.get("divergence")
        return None if value is None else float(value)

    @property
    def missed(self) -> tuple[str, ...]:
        """Goals of size, latency or time that were missed, each in words."""
        return tuple(self.receipt.missed)

    def headline(self) -> str:
        """The result in one line."""
        return headline(self.receipt)

    def rows(self) -> Sequence[Row]:
        """Size, outputs, latency, loading, what it runs on, what was missed."""
        return rows(self.receipt)

    @staticmethod
    def account_path(path: Path) -> Path:
        """Where the receipt of the model at ``path`` goes."""
        return path.with_name(f"{path.stem}.receipt.json")

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> list[Path]:
        """Write the model and, beside it, ``<stem>.receipt.json``: all of them or none; gives all files written.

        Raises ModelError where one of the files is one that the run read, or another of them, or exists (without
        ``force``).
        """
        target = Path(path)
        account = self.account_path(target)
        refuse_outputs(self.model, [target, account], force=force)
        with Transaction() as outputs:
            staged = stage(self.model, target, outputs)
            self.receipt.result |= {"path": target.name, "bytes": staged.size_bytes, "sha256": staged.sha256}
            outputs.write(account, [self.receipt.to_json().encode()])
            outputs.commit(stale_data(target, staged, self.model))
        return [*staged.paths, account]

    def report(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the account as one HTML file that needs nothing else. Raises ModelError where it exists, without
        ``force``, or is a file that the run read."""
        from onnxcomp.report import render  # late: it takes a template engine that most runs do without

        target = Path(path)
        refuse_files([target], self.model.inputs, force=force)
        with Transaction() as outputs:
            outputs.write(target, [render(self.receipt).encode()])
            outputs.commit()
        return target
