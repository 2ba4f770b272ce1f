"""What only people, exporters and viewers read goes; what inference reads stays.

    doc strings, value infos that inference restores, exporters' metadata, on request inner names

Inputs, outputs, producer, opset imports and the user's own metadata (labels and the like) stay.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from dataclasses import dataclass

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass, parameter
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.storage.strip import Trimmer
from onnxcomp.graph.storage.texts import is_read, is_users


@dataclass(frozen=True, kw_only=True)
class StripMetadata(Pass):
    """Remove doc strings, exporters' metadata and value infos that inference restores."""

    effect = Effect(shrinks=("bytes",), exact=Exact.TENSORS)
    as_stored = True

    shorten_names: bool = parameter(False, help="shorten the names of inner tensors and drop those of nodes")
    user_metadata: bool = parameter(False, help="remove the model's own metadata entries too")
    keep: str | None = parameter(None, help="pattern of metadata keys that stay")

    def renames(self) -> bool:
        return self.shorten_names

    def apply(self, graph: Graph, context: Context) -> Outcome:
        trimmer = Trimmer(graph, context.selects)
        trimmer.strip_texts(self._stays, self._stays_in_model)
        trimmer.strip_value_info()
        if self.shorten_names:
            trimmer.shorten_names(dataclasses.replace(context, include=None).selects)
        outcome = Outcome()
        for what, number in sorted(trimmer.removed.items()):
            if number:
                outcome.change(what, f"removed {what}", number=number)
        return outcome

    def _stays(self, key: str) -> bool:
        """Whether a metadata entry of a node, tensor or graph stays."""
        return is_read(key) or (self.keep is not None and fnmatch.fnmatchcase(key, self.keep))

    def _stays_in_model(self, key: str) -> bool:
        """Whether a metadata entry of the model stays."""
        return self._stays(key) or (is_users(key) and not self.user_metadata)
