"""What only people, exporters and viewers read goes; what inference reads stays.

    doc strings, value infos that inference restores, exporters' metadata, on request inner names

Inputs, outputs, producer, opset imports and the user's own metadata (labels and the like) stay.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from dataclasses import dataclass

from onnxcomp.contract import Context, Effect, Outcome, Pass, parameter
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.storage.strip import Trimmer

# Read by ONNX Runtime when it opens a session, so never taken out.
RUNTIME_KEYS = ("ort*", "onnxruntime*", "session.*", "layer_ann*")
# Written by exporters and optimizers about themselves.
EXPORTER_KEYS = ("pkg.*", "torch*", "onnxscript*", "namespace", "onnx.infer", "onnx.quant.pre_process")


@dataclass(frozen=True, kw_only=True)
class StripMetadata(Pass):
    """Remove doc strings, exporters' metadata and value infos that inference restores."""

    effect = Effect(shrinks=("bytes",), exact=True)
    as_stored = True

    shorten_names: bool = parameter(False, help="shorten the names of inner tensors and drop those of nodes")
    user_metadata: bool = parameter(False, help="remove the model's own metadata entries too")
    keep: str | None = parameter(None, help="pattern of metadata keys that stay")

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
        return _matches(key, RUNTIME_KEYS) or (self.keep is not None and _matches(key, (self.keep,)))

    def _stays_in_model(self, key: str) -> bool:
        """Whether a metadata entry of the model stays."""
        return self._stays(key) or not (self.user_metadata or _matches(key, EXPORTER_KEYS))


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)
