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
    """

    current: Model
    reference: Model
    is_exact: bool = True
    origins: Origins = field(default_factory=dict)
    renewed: Model | None = None

    @classmethod
    def of(cls, model: Model) -> Lineage:
        """Where a run starts."""
        return cls(model, model)

    def context(self, context: Context) -> Context:
        """The context for the next pass."""
        return dataclasses.replace(context, reference=Reference(self.renewed or self.reference, self.origins))

    def after(self, rewrite: Pass, model: Model, outcome: Outcome) -> Lineage:
        """With ``model`` as what the pass left."""
        if self.is_exact and rewrite.effect.is_exact:
            return Lineage.of(model)
        if rewrite.renews_reference and outcome.changed:
            return Lineage(model, self.reference, is_exact=False, renewed=model)
        return dataclasses.replace(
            self, current=model, is_exact=False, origins=since(outcome.origins, self.origins)
        )

    def lost(self, model: Model) -> Lineage:
        """With ``model``, of which something was lost on the way, and no tensor cut or rescaled."""
        return dataclasses.replace(self, current=model, is_exact=False)
