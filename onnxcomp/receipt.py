"""The receipt: what was done to which weight, what it cost, what was taken back, and how to do it again.

It is plain JSON. ``Receipt.applied`` holds every application that made the result, with its parameters and
the sites that were chosen, so that ``--replay`` makes the same file without measuring anything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxcomp.errors import RecipeError
from onnxcomp.json_schema import schema_of, schema_of_types
from onnxcomp.memory import uncollected
from onnxcomp.typed import typed

FORMAT = 1
SCHEMA_ID = f"urn:onnxcomp:receipt:{FORMAT}"
LINE = 160  # letters of a line of JSON
FACTS: dict[str, dict[str, tuple[type, ...]]] = {
    "source": {"bytes": (int,), "sha256": (str,)},
    "data": {"random": (bool,), "samples": (int,), "verification_samples": (int,)},
    "metric": {"name": (str,), "limit": (int, float)},
    "result": {"bytes": (int,), "opset": (int,), "ir_version": (int,)},
    "verdict": {"passed": (bool, type(None)), "samples": (int,)},
}


@dataclass
class Application:
    """One application of a pass that is part of the result.

    choice: its sites, each with the fields that differ from ``parameters`` there; None for all sites. restore: weights
        put back afterwards.
    beside: it belongs to one choice with the application before it. What changes values was applied to the model that
        the first of them was applied to, and the weights of ``choice`` taken from there; what rewrites the graph goes
        on from what the ones before left. on_data: it is given the calibration data; fitted: only the part of them that
        a search fits its candidates to.
    """

    rewrite: str
    parameters: dict[str, Any]
    choice: dict[str, dict[str, Any]] | None = None
    exclude: list[str] = field(default_factory=list)
    restore: list[str] = field(default_factory=list)
    beside: bool = False
    on_data: bool = False
    fitted: bool = False


@dataclass
class Entry:
    """A weight or node in a step's account."""

    name: str
    what: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Tried:
    """One thing that a step tried on the whole model.

    name: its passes and the parameters that are not the default. outcome: "kept", or why it lost.
    latency_ratio: of the step's result over what the step was given; divergence: from the original. What was
    not measured is None.
    """

    name: str
    outcome: str
    bytes_after: int | None = None
    latency_ratio: float | None = None
    divergence: float | None = None


@dataclass
class StepReport:
    """What became of one step of the recipe.

    decision: "kept", "kept in part", "taken back" or "nothing to do"; reason: why, where it was not kept.
    bytes_before, bytes_after: of the whole model, data included, before the final compact storage.
    tried: where the step had several ways to go: each of them, and why it lost.
    divergence: from the original after this step, with its confidence interval; None where not measured.
    node_errors: of the weights whose nodes' own outputs are off most, the relative squared error of these.
    """

    rewrite: str
    decision: str
    parameters: dict[str, Any]
    bytes_before: int
    bytes_after: int
    seconds: float
    reason: str = ""
    divergence: float | None = None
    interval: tuple[float, float] | None = None
    latency_ratio: float | None = None  # after over before, where the step was asked for speed
    node_errors: dict[str, float] = field(default_factory=dict)
    tried: list[Tried] = field(default_factory=list)
    changed: list[Entry] = field(default_factory=list)
    skipped: list[Entry] = field(default_factory=list)
    taken_back: list[Entry] = field(default_factory=list)


@dataclass
class Alternative:
    """One thing that a search could have made of a weight.

    what: the pass and the parameters that are not the default, "" for the weight as it is. size_bytes: about what it
    takes. error: relative and squared, of the node's output where data tell it. divergence: of the model's outputs,
    that it alone was predicted to cause; None where nothing told. Figures have four digits.
    """

    what: str
    size_bytes: int
    error: float = 0.0
    divergence: float | None = None


@dataclass
class WeightAccount:
    """One weight of the source or of the result: what it was, what it is, and what a search chose it from. What a file
    leaves out is as by default.

    shape, bytes_before: as it was in the source; None for one that the run made. shape_after, bytes_after: as it is in
    the result; None for one that is gone. stored: how the result keeps it. zeros: the share of its values that are, in
    the result. influence: divergence of the model's outputs for each unit of relative squared error of the node's own
    output, as the search measured it. alternatives: by bytes, with what was chosen at the index ``chosen``.
    """

    kind: str = ""
    shape: list[int] | None = None
    bytes_before: int | None = None
    shape_after: list[int] | None = None
    bytes_after: int | None = None
    stored: str = ""
    zeros: float | None = None
    influence: float | None = None
    chosen: int | None = None
    alternatives: list[Alternative] = field(default_factory=list)


@dataclass
class OutlineNode:
    """A node of the source's main graph. now: its operator in the result, "" where no node has its name any more.
    reads: its weights. macs: multiply-accumulates before and after, with those of nodes that were made of it; empty
    where it has none, or where shapes are not known."""

    name: str = ""
    operator: str = ""
    now: str = ""
    reads: list[str] = field(default_factory=list)
    macs: list[int] = field(default_factory=list)


@dataclass
class Graphs:
    """Source and result as graphs. operators: how many nodes of each there are in either. macs: multiply-accumulates
    for a batch of one, as far as shapes are known, of either. nodes: the source's, in the order in which they run;
    more: of those that are left out. milliseconds: of one run by the operators that ONNX Runtime makes of either, by
    its own profile; empty where none was taken.
    """

    operators: dict[str, list[int]] = field(default_factory=dict)
    macs: list[int] = field(default_factory=list)
    nodes: list[OutlineNode] = field(default_factory=list)
    more: int = 0
    milliseconds: dict[str, list[float]] = field(default_factory=dict)


@dataclass(repr=False)
class Receipt:
    """The whole account of one run.

    target_cpu: the processor that it was made for, "" on other providers and where none was recorded.
    min_ort: the oldest ONNX Runtime that had to load it, "" where none was asked for.
    reference: the model that it was held against, where that is not the source. training: samples and engine of what
    trains.
    weights, graphs, machine, command, date: for those who read it; no replay goes by them, and receipts of versions
    before 0.2 have none. command: as it was typed, "" for a run that Python started. date: when it began, in UTC.
    """

    recipe: str
    seed: int
    target: str
    versions: dict[str, str]
    source: dict[str, Any]
    data: dict[str, Any]
    metric: dict[str, Any]
    result: dict[str, Any] = field(default_factory=dict)
    steps: list[StepReport] = field(default_factory=list)
    applied: list[Application] = field(default_factory=list)
    verdict: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    target_cpu: str = ""
    min_ort: str = ""
    reference: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, WeightAccount] = field(default_factory=dict)
    graphs: Graphs = field(default_factory=Graphs)
    machine: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    date: str = ""
    format: int = FORMAT

    def __repr__(self) -> str:
        sizes = f"{self.source.get('bytes', 0):,} -> {self.result.get('bytes', 0):,} bytes"
        return f"<Receipt: {self.recipe}, {len(self.steps)} steps, {sizes}>"

    def content(self) -> dict[str, Any]:
        """What the JSON holds, without what says nothing of weights and nodes."""
        with uncollected():  # graphs of many nodes may be open
            content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=_plain))
            content["weights"] = {name: _filled(each) for name, each in content["weights"].items()}
            content["graphs"]["nodes"] = [_filled(each) for each in content["graphs"]["nodes"]]
        return content

    def to_json(self) -> str:
        """The receipt as JSON: what is short stands on one line, the rest is indented."""
        with uncollected():
            return _laid_out(self.content(), 0) + "\n"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Receipt:
        """Read a receipt; RecipeError when the file is none, or of a later format."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
                raise RecipeError(f"{path}: a receipt of format {content['format']}; this version reads {FORMAT}.")
            if isinstance(content, dict):
                content.pop("files", None)  # what --json says beside the receipt
                _as_choices(content)
            read: Receipt = typed(cls, content, "receipt")
            _check_facts(read)
            return read
        except UnicodeDecodeError as error:  # a model, most likely
            raise RecipeError(f"{path}: not a receipt of onnxcomp, which is JSON: NAME.receipt.json.") from error
        except (OSError, ValueError, RecursionError) as error:
            raise RecipeError(f"{path}: not a receipt of onnxcomp: {error}.") from error


def receipt_schema() -> dict[str, Any]:
    """The JSON Schema of receipts: what ``Receipt.read`` takes, and what ``--json`` prints."""
    schema = schema_of(Receipt)
    properties = schema["properties"]
    for part, facts in FACTS.items():
        known = {key: schema_of_types(*kinds) for key, kinds in facts.items()}
        properties[part] |= {"properties": known, "required": list(facts)}
    properties["seed"] |= {"minimum": 0}
    properties["format"] = {"const": FORMAT}
    properties["files"] = {"type": "array", "items": {"type": "string"}, "description": "What --json says was written."}
    required = list(dict.fromkeys([*schema["required"], *FACTS]))
    return {**schema, "required": required, "$id": SCHEMA_ID, "title": f"Receipt of onnxcomp, format {FORMAT}"}


def digest(content: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_choices(content: dict[str, Any]) -> None:
    """Applications as they were once written, with the names in ``include`` that all have the pass's own fields."""
    applied = content.get("applied")
    for each in applied if isinstance(applied, list) else ():
        if isinstance(each, dict) and "include" in each and "choice" not in each:
            names = typed(list[str] | None, each.pop("include"), "include")
            each["choice"] = None if names is None else {name: {} for name in names}


def _check_facts(receipt: Receipt) -> None:
    """Raise ValueError for facts that a replay goes by, or shows, and that are not there."""
    for part, facts in FACTS.items():
        for key, kinds in facts.items():
            value = getattr(receipt, part).get(key)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise ValueError(f"{part}.{key} is {value!r}")
    if receipt.seed < 0:
        raise ValueError(f"seed is {receipt.seed}")


def _filled(entries: dict[str, Any]) -> dict[str, Any]:
    """Without what says nothing: there may be thousands."""
    return {key: value for key, value in entries.items() if value not in (None, "", [])}


def _laid_out(value: Any, depth: int) -> str:
    """JSON of which no line is long but where a single value is. depth: how far it is indented."""
    short = json.dumps(value)
    if len(short) + depth <= LINE or not isinstance(value, dict | list):
        return short
    start, end = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_laid_out(each, depth + 1)}" for key, each in value.items()]
        return f"{{{start}{f',{start}'.join(items)}{end}}}"
    return f"[{start}{f',{start}'.join(_laid_out(each, depth + 1) for each in value)}{end}]"


def _plain(value: Any) -> Any:
    """Numpy scalars and arrays as JSON numbers and lists; paths as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (set, frozenset, tuple)):
        return sorted(value) if isinstance(value, (set, frozenset)) else list(value)
    return str(value)
