"""What ONNX Runtime makes of a model: the graph after its own rewriting, integer kernels in place."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort

from onnxcomp.errors import TargetError
from onnxcomp.model_source import ModelSource
from onnxcomp.room import full, is_exhausted
from onnxcomp.runtime.session import LEVELS, LOG_FATAL, ORT_ERRORS, one_line, ready

if TYPE_CHECKING:
    import onnx

# Initializers from here on go to a file of their own, which is not read back.
KEPT_BYTES = 64


def optimized(
    model: ModelSource,
    *,
    provider: str = "CPUExecutionProvider",
    custom_ops: Sequence[Path] = (),
    level: str = "extended",
) -> onnx.ModelProto:
    """The model as ``provider`` runs it, without the data of its initializers.

    level: of optimization: with "extended" it is fused, but in its own layout; with "all" it is what runs here.

    Raises TargetError when the model does not load there.
    """
    import onnx  # late: processes that measure import this package, too

    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        path = Path(folder, "optimized.onnx")
        options = ort.SessionOptions()
        options.log_severity_level = LOG_FATAL
        options.intra_op_num_threads = 1
        options.graph_optimization_level = LEVELS[level]
        options.optimized_model_filepath = str(path)
        prefix = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{prefix}_file_name", "optimized.data")
        options.add_session_config_entry(f"{prefix}_min_size_in_bytes", str(KEPT_BYTES))
        try:
            for library in custom_ops:
                options.register_custom_ops_library(str(library))
            ort.InferenceSession(ready(model, options, provider), options, providers=[provider])
        except ORT_ERRORS as error:
            if is_exhausted(Path(folder)):
                raise full(Path(folder)) from error
            raise TargetError(f"{provider} cannot load the model: {one_line(error)}") from error
        return onnx.load(path, load_external_data=False)
