"""Receipts as runs write them, made by hand, and the page as a tree."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from tinyhtml5.parser import HTMLParser

from onnxcomp.receipt import (
    Alternative,
    Application,
    Entry,
    Graphs,
    OutlineNode,
    Receipt,
    StepReport,
    Tried,
    WeightAccount,
)

SPACE = "{http://www.w3.org/1999/xhtml}"
FIRST = [
    Alternative("cluster-weights bits=3", 600, 0.01, 0.012),
    Alternative("cluster-weights bits=4", 800, 0.002, 0.002),
    Alternative("quantize-weights bits=5", 1100, 0.0009, 0.0014),
    Alternative("", 8192, 0.0, 0.0),
]
SECOND = [
    Alternative("cluster-weights bits=2", 100, 0.2, 0.3),
    Alternative("quantize-weights bits=8", 300, 0.00001, 0.0001),
    Alternative("", 2560, 0.0, 0.0),
]


def account(first: str = "conv.weight", second: str = "fc.weight", node: str = "conv") -> Receipt:
    """A run that searched two weights of one node each, with the names given."""
    step = StepReport(
        "quantize-weights | cluster-weights", "kept", {"bits": "auto"}, 12000, 12000, 3.5, divergence=0.0021,
        interval=(0.001, 0.004),
        changed=[Entry(first, "16 levels", {"bits": 4, "error": 0.002}), Entry(second, "8 bits", {"bits": 8})],
        taken_back=[Entry("bias", "taken back", {"divergence_alone": 0.5})],
    )  # fmt: skip
    storing = StepReport(
        "store-compact", "kept", {}, 12000, 2000, 0.01,
        changed=[Entry(first, "codebook, 4 bits", {"bytes_before": 8215, "bytes_after": 840, "bits_per_value": 3.3})],
        skipped=[Entry("bias", "no storage is smaller")],
    )  # fmt: skip
    idle = StepReport("fold-constants", "nothing to do", {}, 12000, 12000, 0.0)
    weights = {
        first: WeightAccount("conv", [32, 16, 2, 2], 8192, [32, 16, 2, 2], 840, "compact", 0.25, 1.5, 1, FIRST),
        second: WeightAccount("linear", [64, 10], 2560, [32, 10], 300, "int8", 0.0, 20.0, 1, SECOND),
        "bias": WeightAccount("vector", [32], 128, [32], 128, "float"),
        "lost": WeightAccount("vector", [16], 64),
        "made": WeightAccount("vector", None, None, [8], 32, "float"),
    }
    nodes = [OutlineNode(node, "Conv", "Conv", [first]), OutlineNode("pad", "Pad"), OutlineNode("fc", "Gemm", "MatMul")]
    operators = {"Conv": [1, 1], "Pad": [1, 0], "(compact storage)": [0, 3]}
    graphs = Graphs(operators, [2000, 1000], nodes, 4, {"Conv": [1.0, 0.5], "Gemm": [0.0, 0.25]})
    return Receipt(
        recipe="small",
        seed=3,
        target="cpu",
        versions={"onnxcomp": "0.2.0", "onnxruntime": "1.32.0"},
        source={"path": "/models/net.onnx", "bytes": 12500, "sha256": "ab"},
        data={"source": "calib.npz", "random": False, "samples": 64, "verification_samples": 32,
              "shapes": {"x": [1, 3, 8, 8]}},
        metric={"name": "divergence", "limit": 0.03},
        result={"path": "net.opt.onnx", "bytes": 2100, "opset": 17, "ir_version": 8, "needs_onnxruntime": "1.12"},
        steps=[idle, step, storing],
        applied=[Application("quantize-weights", {"bits": 4}, on_data=True)],
        verdict={"passed": True, "verified": True, "divergence": 0.0021, "limit": 0.03, "samples": 32,
                 "interval": [0.001, 0.004], "agreement": 0.96875,
                 "outputs": {"y": {"kind": "classes", "measure": "classes", "divergence": 0.0021}}},
        measured={"latency_ms_original": 1.0, "latency_ms_result": 0.5, "latency_ms_ratio": 0.5,
                  "load_s_original": 0.01, "load_s_result": 0.02, "load_s_ratio": 2.0, "seconds": 4.0},
        notes=["a note"],
        weights=weights,
        graphs=graphs,
        machine={"processor": "Some CPU", "taken_for": "vnni", "cores": 2, "memory_bytes": 8 * 10**9,
                 "system": "Linux x86_64", "threads": 1},
        command="onnxcomp optimize net.onnx",
        date="2026-11-27T12:00:00+00:00",
    )  # fmt: skip


def old_account() -> Receipt:
    """The same as versions before 0.2 wrote it, with rewrites of the whole model that were tried."""
    receipt = account()
    receipt.weights, receipt.graphs, receipt.machine, receipt.command, receipt.date = {}, Graphs(), {}, "", ""
    receipt.data.pop("shapes")
    receipt.steps[1].tried = [Tried("fuse-pad", "kept", 10, 0.5, 0.1), Tried("cast-float16", "no faster")]
    return receipt


def tree(page: str) -> Element:
    """The page as an HTML parser reads it; AssertionError with the faults where it is not well-formed."""
    parser = HTMLParser()
    root: Element = parser.parse(page)
    assert not parser.errors, parser.errors[:5]
    return root


def elements(root: Element, *tags: str) -> Iterator[Element]:
    """All elements of these tags."""
    return (each for each in root.iter() if each.tag in {f"{SPACE}{tag}" for tag in tags})


def text(element: Element) -> str:
    """All text of an element, a space between its parts."""
    return " ".join(" ".join(element.itertext()).split())


def named(root: Element, name: str) -> Element:
    """The element of an id."""
    return next(each for each in root.iter() if each.get("id") == name)
