"""list_groups: what cutting saves is what the model loses when it is cut."""

from __future__ import annotations

import pytest

from onnxcomp.graph.channels.dependencies import dependencies
from onnxcomp.graph.channels.removal import remove_units
from onnxcomp.graph.ir.reader import Graph, close_graph, open_graph
from onnxcomp.graph.report.channel_groups import MemberInfo, list_groups
from onnxcomp.graph.report.macs import count_macs
from onnxcomp.graph.stored.opening import open_plain
from tests.graph.channels.test_dependencies import attention, built
from tests.test_real_models import MODELS, real

CONV = "g (float[1, 3, 4, 4] x) => (float[1, 5, H, W] y) { a = Conv(x, w, b) h = Relu(a) y = Conv(h, u) }"
SHAPES = {"w": (4, 3, 3, 3), "b": (4,), "u": (5, 4, 1, 1)}


def held(graph: Graph) -> tuple[int, int]:
    """The bytes of all weights and biases, and the multiply-accumulates."""
    constants = {id(each): each for scope in graph.scopes for each in scope.constants}
    size = sum(each.nbytes for each in constants.values() if each.dtype is not None and each.dtype.kind == "f")
    return size, sum(each.count for each in count_macs(graph).values() if each is not None)


def test_members_and_savings_by_hand() -> None:
    (group,) = list_groups(built(CONV, **SHAPES)).groups
    assert (group.name, group.kind, group.units, group.nodes) == ("a", "channels", 4, ("a",))
    assert set(group.members) == {
        MemberInfo("w", 0, "a", is_read=False), MemberInfo("b", 0, "a", is_read=False),
        MemberInfo("u", 1, "y", is_read=True),
    }  # fmt: skip
    assert (group.unit_bytes, group.unit_macs) == (4 * (27 + 1 + 5), 4 * 27 + 4 * 5)
    assert (group.bytes, group.macs) == (4 * 4 * 33, 4 * 4 * 32)


def test_what_stays_is_listed_with_its_reason() -> None:
    (declined,) = list_groups(built(CONV, **SHAPES)).declined
    assert (declined.node, declined.reason) == ("y", "it is an output of its graph")


def test_heads_save_their_share_of_products_of_computed_tensors() -> None:
    model = attention("0, 0, 2, 3")
    (group,) = list_groups(model).groups
    # For one word: four products with 6 x 6 or 6 x 5 weights; scores and their mix of 2 heads x 3.
    assert (group.kind, group.macs) == ("heads", 3 * 36 + 30 + 6 + 6)
    assert group.unit_macs == group.macs / 2


@pytest.mark.parametrize("file", MODELS)
def test_a_unit_saves_what_the_model_loses(file: str) -> None:
    model = real(file).model
    listed = list_groups(model).groups
    for index in {0, len(listed) // 2, len(listed) - 1} if listed else set():
        graph = open_plain(model)
        found = dependencies(graph)
        before = held(graph)
        remove_units(found, found.groups[index].units[:1])
        after = held(open_graph(close_graph(graph)))
        assert listed[index].unit_bytes == before[0] - after[0]
        assert listed[index].unit_macs == pytest.approx(before[1] - after[1], rel=1e-3, abs=1)
