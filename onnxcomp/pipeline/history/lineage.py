"""A model on its way through passes, and what the passes that repair are to hold it against.

    exact, exact, lossy, exact, repair:   the repair sees the model as the first two left it

Exact passes may change what flows inside a model (ranges that are moved from one node to the next), so its inner
tensors can be compared with those of the model after them and no earlier one, within a step and from step to step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from onnxcomp.contract import Context, Outcome, Pass
from onnxcomp.graph.provenance import Origins, Reference, since
from onnxcomp.model import Model


@dataclass(frozen=True)
class Lineage:
    """A model, and ``reference``: as it was before the first pass that lost anything (itself, if none did).

    renewed: in its place for passes that repair, where a pass moved what weights do to others, so that none of them can
    be compared with what it was. origins: what tensors of the model that were cut or rescaled since are in either.
    trained: what inner tensors are to be, where a pass has trained them towards the reference's outputs. renamed: the
    model before names were shortened, where nothing else has come after that.
    """

    current: Model
    reference: Model
    is_exact: bool = True
    origins: Origins = field(default_factory=dict)
    renewed: Model | None = None
    trained: Model | None = None
    renamed: Model | None = None

    @classmethod
    def of(cls, model: Model, original: Model | None = None) -> Lineage:
        """Where a run starts. original: what the model was before an earlier run lost something."""
        return cls(model, model) if original is None else cls(model, original, is_exact=False)

    @property
    def watched(self) -> Model:
        """The model that has the inner tensors as they are to be."""
        return self.trained or self.reference

    @property
    def named(self) -> Model:
        """The model as it is, by the names that the steps knew."""
        return self.renamed or self.current

    def context(self, context: Context) -> Context:
        """The context for the next pass."""
        reference = Reference(self.renewed or self.reference, self.origins)
        return dataclasses.replace(context, reference=reference, original=self.reference)

    def after(self, rewrite: Pass, model: Model, outcome: Outcome) -> Lineage:
        """With ``model`` as what the pass left."""
        renamed = self.named if rewrite.renames() and outcome.changed else None
        return dataclasses.replace(self._after(rewrite, model, outcome), renamed=renamed)

    def _after(self, rewrite: Pass, model: Model, outcome: Outcome) -> Lineage:
        if self.is_exact and rewrite.effect.is_exact:
            return Lineage.of(model)
        if (rewrite.renews_reference or rewrite.trains) and outcome.changed:
            trained = model if rewrite.trains else self.trained
            return Lineage(model, self.reference, is_exact=False, renewed=model, trained=trained)
        return dataclasses.replace(self, current=model, is_exact=False, origins=since(outcome.origins, self.origins))

    def lost(self, model: Model) -> Lineage:
        """With ``model``, of which something was lost on the way, and no tensor cut or rescaled."""
        return dataclasses.replace(self, current=model, is_exact=False, renamed=None)
