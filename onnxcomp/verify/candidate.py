"""What is judged: something that gives its outputs on the samples, and opens for what else is asked of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from onnxcomp.calibration import CalibrationData
from onnxcomp.model import Model
from onnxcomp.runtime import Session, ValueSpec, run_isolated
from onnxcomp.target import Target
from onnxcomp.verify.reading.watched import Watched
from onnxcomp.verify.reference import flatten

Array = NDArray[Any]

ISOLATE_FROM_BYTES = 10**9


class Candidate(Protocol):
    """What may stand for the original."""

    def outputs(self) -> Iterator[dict[str, Array]]:
        """Its outputs of every batch in order, and what is watched beside them."""

    def opened(self) -> AbstractContextManager[Session]:
        """A session on it, as it is."""


@dataclass
class WholeModel:
    """A model as a candidate. specs: of the outputs, where it runs in this process, once it did.

    original_bytes: of the model that it is compared with; where either is large, it runs in a process of its own.
    note: is told what such a run took.
    """

    model: Model
    data: CalibrationData
    target: Target
    watched: Watched
    original_bytes: int
    note: Callable[[str], None]
    specs: dict[str, ValueSpec] = field(default_factory=dict)

    def outputs(self) -> Iterator[dict[str, Array]]:
        """Outputs of every batch, from this process or, for large models, one of their own."""
        if max(self.model.size_bytes, self.original_bytes) >= ISOLATE_FROM_BYTES:
            yield from self._isolated()
            return
        prepared, shown = self.watched.prepare(self.model)
        with prepared.opened_on(self.target.session) as session:
            self.specs = {spec.name: spec for spec in session.outputs}
            for feeds in self.data.batches():
                yield self.watched.named(flatten(session.run(feeds)), shown)

    def opened(self) -> AbstractContextManager[Session]:
        """A session on the model, in this process."""
        return self.model.opened_on(self.target.session)

    def _isolated(self) -> Iterator[dict[str, Array]]:
        """Of few batches, for which weights are neither decoded at loading, which takes five times what they take in
        the original, nor packed."""
        prepared, shown = self.watched.prepare(self.model)
        with tempfile.TemporaryDirectory(prefix="onnxcomp-", dir=self.model.scratch.folder) as folder:
            run = run_isolated(
                prepared.materialize(Path(folder) / "model"),
                self.data.batches(),
                folder=Path(folder) / "run",
                provider=self.target.provider,
                provider_options=self.target.provider_options,
                threads=self.target.threads,
                custom_ops=self.target.custom_ops,
                frugal=True,
            )
            self.note(f"ran in a process of its own, peak memory {run.peak_bytes / 2**20:,.0f} MiB")
            for outputs in run.outputs():
                yield self.watched.named(flatten(outputs), shown)
