"""One ONNX Runtime session: quiet, on exactly the provider asked for, with every tensor type as numpy.

``Session(model).run({"x": array})`` gives ``{"y": array}``. Types that numpy lacks (bfloat16, float8) come
and go as ml_dtypes arrays, which ONNX Runtime's own ``run`` refuses.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from onnxcomp.errors import TargetError, VerificationError
from onnxcomp.model_source import ModelSource, Referring

Array = NDArray[Any]
Value = Any
"""What an input or output holds: an array, a list of arrays (sequence), a map, or None (empty optional)."""
Feeds = Mapping[str, Value]

LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
# ONNX Runtime's exceptions share no base class but Exception; ValueError and TypeError come from its
# Python layer (missing feeds, objects of the wrong kind), RuntimeError from pybind11.
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(
        item
        for item in vars(ort_errors).values()
        if isinstance(item, type) and issubclass(item, Exception) and item.__module__ == ort_errors.__name__
    ),
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    MemoryError,
)
DTYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    **{name: np.dtype(name) for name in ("int8", "int16", "int32", "int64", "bool")},
    **{name: np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")},
    "complex64": np.dtype(np.complex64),
    "complex128": np.dtype(np.complex128),
    "string": np.dtype(object),
}
# Element types by ONNX's TensorProto.DataType numbers, for the types that need to be named to ORT.
FOREIGN_TYPES = {
    "bfloat16": 16,
    "float8e4m3fn": 17,
    "float8e4m3fnuz": 18,
    "float8e5m2": 19,
    "float8e5m2fnuz": 20,
}
SHORT_FLOATS = frozenset({"float16", "bfloat16"})
CPU = "CPUExecutionProvider"
DATA_FOLDER = "session.model_external_initializers_file_folder_path"
NO_CPU_FALLBACK = "session.disable_cpu_ep_fallback"
NO_PACKING = "session.disable_prepacking"
FOLDING = "ConstantFolding"  # ONNX Runtime keeps each step on the way from codes to a weight until all are folded
LOG_FATAL = 4


@dataclass(frozen=True)
class ValueSpec:
    """An input or output as the model declares it.

    ``type`` is ONNX Runtime's word, e.g. ``tensor(float)`` or ``seq(tensor(int64))``. A dimension is a
    number, a symbol, or None where the model says nothing; ``shape`` is () for scalars and non-tensors.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...]

    @property
    def element(self) -> str:
        """The innermost element type's name: ``float`` for ``seq(tensor(float))``."""
        return str(re.findall(r"[a-z0-9]+", self.type)[-1])

    @property
    def is_tensor(self) -> bool:
        """Whether the value itself is one dense tensor."""
        return self.type.startswith("tensor(")

    @property
    def is_sequence(self) -> bool:
        """Whether the value is a list of tensors, optional or not."""
        return "seq(" in self.type

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The numpy (or ml_dtypes) type of the elements; None for maps, packed types and unknown ones."""
        return None if "map(" in self.type else DTYPES.get(self.element)


def one_line(error: BaseException) -> str:
    """ONNX Runtime's message without its code prefix, source locations and line breaks."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"/onnxruntime_src/\S+(:\d+)? ?", "", text)
    text = re.sub(r"^[\w:<>,&* ]*\bonnxruntime::[^()]*\([^()]*(\([^()]*\)[^()]*)*\)( const)? ?", "", text)
    return text[:500] or type(error).__name__


def installed_version() -> tuple[int, int]:
    """Major and minor version of the ONNX Runtime that is installed."""
    major, minor = ort.__version__.split(".")[:2]
    return int(major), int(minor)


def installed_release() -> str:
    """The release of ONNX Runtime that is installed, whatever package it came in."""
    return str(ort.__version__)


def available_providers() -> tuple[str, ...]:
    """ONNX Runtime's names of the execution providers that this installation has."""
    return tuple(ort.get_available_providers())


def known_providers() -> tuple[str, ...]:
    """ONNX Runtime's names of every execution provider it could be built with."""
    return tuple(ort.get_all_providers())


class Session:
    """An open model on one execution provider.

    model: serialized bytes, a path (needed above 2 GB), or a header that refers to data in other folders.
    provider: ONNX Runtime's own name; CPU is always there for the nodes that the provider does not take.
    threads: intra-op threads; 0 lets ONNX Runtime choose.
    optimization: graph optimization ``none``, ``basic``, ``extended`` or ``all``.
    config: session config entries such as ``{"session.disable_quant_qdq": "1"}``; with
        ``session.disable_cpu_ep_fallback`` the provider has to take every node, or the model does not load.
    custom_ops: shared libraries with custom operators to register first.
    initializers: by name the values of initializers of the main graph whose data, by what the model says, lie in
        another file: they are taken from here instead, and copied.
    plans_memory: whether tensors get their places before a run, once the shapes of the inputs are known. That takes a
        second block as large as all that is alive at once.
    frugal: whether weights stay as they are stored, on CPU: they are not packed anew for products, and what decodes
        them does so in each run. Loading takes next to nothing, in time and memory, and a run longer.
    profile: a folder to which ONNX Runtime writes how long each node took (see ``end_profile``).

    Raises TargetError when the model does not load there, or the provider gave way to CPU in silence.
    """

    def __init__(
        self,
        model: ModelSource,
        *,
        provider: str = "CPUExecutionProvider",
        provider_options: Mapping[str, str] | None = None,
        threads: int = 1,
        optimization: str = "all",
        config: Mapping[str, str] | None = None,
        custom_ops: Sequence[Path] = (),
        initializers: Mapping[str, Array] | None = None,
        plans_memory: bool = True,
        frugal: bool = False,
        profile: Path | None = None,
    ) -> None:
        if provider not in available_providers():
            installed = ", ".join(available_providers())
            raise TargetError(f"execution provider {provider} is not installed; installed are {installed}")
        options = ort.SessionOptions()
        options.log_severity_level = LOG_FATAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = LEVELS[optimization]
        options.enable_mem_pattern = plans_memory
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile / "profile")
        frugal = frugal and provider == CPU
        for key, value in (({NO_PACKING: "1"} if frugal else {}) | dict(config or {})).items():
            options.add_session_config_entry(key, value)
        content = ready(model, options, provider)
        providers: list[Any] = [(provider, dict(provider_options or {}))]
        strict = (config or {}).get(NO_CPU_FALLBACK) == "1"  # then ONNX Runtime refuses to be given CPU at all
        if provider != "CPUExecutionProvider" and not strict:
            providers.append("CPUExecutionProvider")
        try:
            for library in custom_ops:
                options.register_custom_ops_library(str(library))
            if initializers:
                values = [_held(each) for each in initializers.values()]
                options.add_external_initializers(list(initializers), values)
            left_out = [FOLDING] if frugal else None
            self._session = ort.InferenceSession(
                content, options, providers=providers, enable_fallback=0, disabled_optimizers=left_out
            )
        except ORT_ERRORS as error:
            raise TargetError(f"{provider} cannot load the model: {one_line(error)}") from error
        if provider not in self._session.get_providers():
            raise TargetError(f"{provider} is installed but could not be used: ONNX Runtime fell back to CPU")
        self.provider = provider
        self.inputs = tuple(_spec(item) for item in self._session.get_inputs())
        self.outputs = tuple(_spec(item) for item in self._session.get_outputs())
        self.overridable = tuple(_spec(item) for item in self._session.get_overridable_initializers())
        self._input_types = {item.name: item.element for item in (*self.inputs, *self.overridable)}
        self._output_types = {item.name: item for item in self.outputs}

    @property
    def metadata(self) -> dict[str, str]:
        """The model's own metadata properties."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def end_profile(self) -> Path:
        """Write what was profiled so far and give the file: JSON, one event a node and run."""
        return Path(self._session.end_profiling())

    def run(
        self, feeds: Feeds, names: Sequence[str] | None = None, *, limit_s: float | None = None
    ) -> dict[str, Value]:
        """The outputs called ``names`` (default all) for ``feeds``, by name.

        limit_s: seconds after which the run is ended, at the next node or turn of a loop.
        Raises VerificationError with ONNX Runtime's message when the model does not run on them.
        """
        wanted = list(names) if names is not None else list(self._output_types)
        options = ort.RunOptions()
        options.log_severity_level = LOG_FATAL
        try:
            with _ended_after(limit_s, options):
                given = {name: self._fed(name, value) for name, value in feeds.items()}
                if any(self._is_foreign(name) for name in wanted):
                    return self._run_foreign(wanted, given, options)
                return dict(zip(wanted, self._session.run(wanted, given, options), strict=True))
        except ORT_ERRORS as error:
            reason = f"it took more than {limit_s:g} s" if options.terminate else one_line(error)
            raise VerificationError(f"the model does not run: {reason}") from error

    def held(self, feeds: Feeds) -> dict[str, Value]:
        """``feeds`` as ONNX Runtime keeps them, to be fed to this session again and again: to convert thousands of
        small arrays takes longer than most models run."""
        given = ((name, self._fed(name, value)) for name, value in feeds.items())
        return {name: _held(value) if isinstance(value, np.ndarray) else value for name, value in given}

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """What runs the model on ``feeds`` again and again with as little as possible around it: for timing.

        Errors are ONNX Runtime's own; ``run`` on the same feeds first.
        """
        names, options = list(self._output_types), ort.RunOptions()
        if any(self._is_foreign(name) for name in names):
            return lambda: self.run(feeds)
        options.log_severity_level = LOG_FATAL
        given = {name: self._fed(name, value) for name, value in feeds.items()}
        return lambda: self._session.run(names, given, options)

    def _fed(self, name: str, value: Value) -> Value:
        """``value`` as ONNX Runtime takes it: foreign types as an OrtValue that names its type.

        A float32 array for an input of a shorter float type is rounded to it; what is held already stays.
        """
        if isinstance(value, ort.OrtValue):
            return value
        if isinstance(value, np.generic):
            value = np.asarray(value)
        wanted = DTYPES.get(self._input_types.get(name, ""))
        if isinstance(value, np.ndarray) and value.dtype == np.float32 and str(wanted) in SHORT_FLOATS:
            value = value.astype(wanted)
        kind = FOREIGN_TYPES.get(self._input_types.get(name, ""))
        if kind is None or not isinstance(value, np.ndarray):
            return value
        whole = np.ascontiguousarray(value).reshape(value.shape)  # which makes a vector of a scalar
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(whole, kind)

    def _is_foreign(self, name: str) -> bool:
        spec = self._output_types.get(name)
        return spec is not None and spec.is_tensor and spec.element in FOREIGN_TYPES

    def _run_foreign(self, names: list[str], feeds: dict[str, Value], options: Any) -> dict[str, Value]:
        values = {
            name: value if isinstance(value, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(value)
            for name, value in feeds.items()
        }
        results = self._session.run_with_ort_values(names, values, options)
        return {
            name: _copied(result, self._output_types[name]) if self._is_foreign(name) else result.numpy()
            for name, result in zip(names, results, strict=True)
        }


def ready(model: ModelSource, options: Any, provider: str) -> bytes | str:
    """The model as ONNX Runtime's constructor takes it, and the options set to find its data."""
    found: bytes | Path
    if isinstance(model, Referring) and provider == CPU:
        options.add_session_config_entry(DATA_FOLDER, str(model.data_folder))
        # ONNX Runtime 1.24 looks for the data beside a file, whatever folder it is told.
        found = model.model if isinstance(model.model, bytes) else model.model.read_bytes()
    else:
        found = model.in_one_place() if isinstance(model, Referring) else model
    return found if isinstance(found, bytes) else str(found)


@contextlib.contextmanager
def _ended_after(limit_s: float | None, options: Any) -> Iterator[None]:
    """Have ONNX Runtime end the run with these options once it has taken so long."""
    if limit_s is None:
        yield
        return
    timer = threading.Timer(limit_s, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def evaluate(model: bytes, feeds: Feeds | None = None, *, optimization: str = "none") -> dict[str, Value]:
    """The outputs of a small model just as its nodes say (no graph optimization): for constant folding."""
    return Session(model, optimization=optimization).run(feeds or {})


def loads(model: ModelSource, *, provider: str = "CPUExecutionProvider") -> bool:
    """Whether ONNX Runtime opens ``model`` on ``provider``."""
    try:
        Session(model, provider=provider)
    except TargetError:
        return False
    return True


def _spec(item: Any) -> ValueSpec:
    # A non-tensor has no shape, and asking a map for one raises.
    shape = item.shape if "tensor(" in item.type and "map(" not in item.type else None
    dims = tuple(None if dim in ("", "?") else dim for dim in shape or ())
    return ValueSpec(item.name, item.type, tuple(None if isinstance(d, int) and d < 0 else d for d in dims))


def _held(values: Array) -> Any:
    """An array as an OrtValue on CPU that keeps it alive."""
    whole = np.require(values, requirements=["C", "A"])
    kind = FOREIGN_TYPES.get(next((name for name, dtype in DTYPES.items() if dtype == whole.dtype), ""))
    if kind is None:
        return ort.OrtValue.ortvalue_from_numpy(whole)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(whole, kind)


def _copied(value: Any, spec: ValueSpec) -> Array:
    """An OrtValue on CPU as an array of its ml_dtypes type, which ``OrtValue.numpy`` cannot make."""
    dtype = cast("np.dtype[Any]", spec.dtype)
    shape = tuple(value.shape())
    size_bytes = int(np.prod(shape)) * dtype.itemsize
    if not size_bytes:
        return np.zeros(shape, dtype)
    raw = ctypes.string_at(value.data_ptr(), size_bytes)
    return np.frombuffer(raw, np.uint8).copy().view(dtype).reshape(shape)
