"""inline-branches: the taken branch stands where the If stood, under names that nothing else has."""

from __future__ import annotations

import numpy as np

from onnxcomp.contract import Context
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.model import load
from onnxcomp.numerics.encodings.encoding import CodebookEncoding
from onnxcomp.registry import get_pass
from tests.passes.exactly import check_same, floats, model, rewrite

X = {"x": floats(3)}
BRANCHES = """then_branch = t () => (float[3] a) <float[3] w = {1, 2, 3}> { h = Add(x, w) a = Relu(h) },
    else_branch = e () => (float[3] b) { h = Neg(x) b = Abs(h) }"""


def test_takes_the_branch_that_the_condition_says() -> None:
    for condition, ops in ((1, ["Add", "Relu", "Neg"]), (0, ["Neg", "Abs", "Neg"])):
        body = f"""g (float[3] x) => (float[3] z) <bool c = {{{condition}}}>
            {{ y = If (c) < {BRANCHES} > z = Neg(y) }}"""
        done = rewrite(model(body), "inline-branches")
        assert done.ops == ops
        check_same(done, X)


def test_keeps_the_names_of_outputs_and_other_branches_apart() -> None:
    body = f"""g (float[3] x, bool d) => (float[3] y, float[3] z, float[3] u) <bool c = {{1}}, bool n = {{0}}>
        {{ y = If (c) < {BRANCHES} > z = If (n) < {BRANCHES} > u = If (d) < {BRANCHES} > }}"""
    done = rewrite(model(body), "inline-branches")
    assert done.ops == ["Add", "Relu", "Neg", "Abs", "If"]
    for choice in (True, False):
        check_same(done, {**X, "d": np.array(choice)})


def test_a_result_that_no_node_of_the_branch_makes() -> None:
    body = """g (float[3] x) => (float[3] y, float[3] z, float[3] u) <bool c = {1}> { y, z, v = If (c) <
        then_branch = t () => (float[3] a, float[3] a, float[3] w) <float[3] w = {1, 2, 3}> { a = Neg(x) },
        else_branch = e () => (float[3] p, float[3] q, float[3] r) { p = Abs(x) q = Relu(x) r = Neg(x) }>
        u = Neg(v) }"""
    done = rewrite(model(body), "inline-branches")
    assert sorted(done.ops) == ["Identity", "Neg", "Neg"]


def test_inlines_what_is_nested() -> None:
    body = """g (float[3] x, bool d) => (float[3] y) <bool c = {1}> { y = If (c) <
        then_branch = t () => (float[3] a) { h = Relu(x) a = If (c) <
            then_branch = t2 () => (float[3] i) { i = If (d) <
                then_branch = t3 () => (float[3] k) <float[3] w = {1, 2, 1}> { k = Add(h, w) },
                else_branch = e3 () => (float[3] l) { l = Neg(h) }> },
            else_branch = e2 () => (float[3] j) { j = Neg(h) }> },
        else_branch = e () => (float[3] b) { b = Abs(x) }> }"""
    graph = open_graph(load(model(body)))
    encoding = CodebookEncoding(dtype="float32", codebook=np.array([1, 2], np.float32))
    key = next(scope.key("w") for scope in graph.scopes if any(each.name == "w" for each in scope.constants))
    graph.encodings[key] = encoding
    get_pass("inline-branches")().apply(graph, Context())
    after = close_graph(graph)
    assert close_graph(open_graph(after)).encodings == {"y/then_branch/w": encoding}
    done = rewrite(model(body), "inline-branches")
    assert done.counts == {"Relu": 1, "If": 1, "Add": 1, "Neg": 1}
    for choice in (True, False):
        check_same(done, {**X, "d": np.array(choice)})


def test_inlines_in_functions_with_constants_as_nodes() -> None:
    body = """g (float[3] x) => (float[3] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 17]> f (x) => (y)
        { c = Constant <value = bool {1}> () y = If (c) <
            then_branch = t () => (float[3] a) <float[3] w = {1, 2, 3}> { a = Add(x, w) },
            else_branch = e () => (float[3] b) { b = Neg(x) }> }"""
    done = rewrite(model(body, more=', "local" : 1'), "inline-branches")
    assert done.counts == {"f": 1, "Constant": 1, "Add": 1}
    check_same(done, X)


def test_leaves_open_conditions_and_excluded_nodes() -> None:
    body = f"g (float[3] x, bool c) => (float[3] y) {{ y = If (c) < {BRANCHES} > }}"
    assert not rewrite(model(body), "inline-branches").outcome.changed
    default = body.replace("=> (float[3] y)", "=> (float[3] y) <bool c = {1}>")
    assert not rewrite(model(default), "inline-branches").outcome.changed
    known = f"g (float[3] x) => (float[3] y) <bool c = {{1}}> {{ y = If (c) < {BRANCHES} > }}"
    assert not rewrite(model(known), "inline-branches", context=Context(exclude=("y",))).outcome.changed


def test_many_branches_in_turn_keep_every_name_apart() -> None:
    """Branches name their results alike: each name that one frees is there for the next."""
    ifs = " ".join(f"y{i} = If (c) < {BRANCHES} >" for i in range(6))
    outputs = ", ".join(f"float[3] y{i}" for i in range(6))
    done = rewrite(model(f"g (float[3] x) => ({outputs}) <bool c = {{1}}> {{ {ifs} }}"), "inline-branches")
    made = [name for node in done.after.proto.graph.node for name in node.output]
    assert len(set(made)) == len(made) and {f"y{i}" for i in range(6)} <= set(made)
    assert not any(name.endswith("_1") for name in made if name.startswith("y"))
    check_same(done, X)
