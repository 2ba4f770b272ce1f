"""The contract: one declaration gives names, ranges and messages."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass, parameter, parameters
from onnxcomp.errors import ParameterError, PassError
from onnxcomp.registry import get_pass, pass_names


@dataclass(frozen=True, kw_only=True)
class TrimThings(Pass):
    """Trim things."""

    effect = Effect(shrinks=("bytes",), exact=Exact.TENSORS)

    bits: int = parameter(4, low=1, high=8, help="bits", strengths=(8, 4))
    share: float = parameter(0.5, low=0, high=1, help="share")
    mode: str = parameter("fast", choices=("fast", "slow"), help="mode")
    limit: int | None = parameter(None, low=0, help="limit")
    keep: bool = parameter(False, help="keep")

    def apply(self, graph: object, context: Context) -> Outcome:
        return Outcome()


def test_names_follow_from_the_class() -> None:
    assert TrimThings.pass_name() == "trim-things"
    assert TrimThings.summary() == "Trim things."


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("bits", 0, "an integer from 1 to 8"),
        ("bits", 2.5, "an integer from 1 to 8"),
        ("bits", True, "an integer from 1 to 8"),
        ("share", 1.5, "a number from 0 to 1"),
        ("share", float("nan"), "a number from 0 to 1"),
        ("mode", "medium", "one of fast, slow"),
        ("limit", -1, "an integer of at least 0, or unset"),
        ("keep", 1, "true or false"),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_shape(field: str, value: object, allowed: str) -> None:
    with pytest.raises(ParameterError) as caught:
        TrimThings(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"trim-things: {field} must be {allowed}, got {value!r}. See `onnxcomp passes trim-things`."
    )


def test_an_integer_serves_as_a_number() -> None:
    assert TrimThings(share=1).share == 1


def test_parameters_carry_the_declaration() -> None:
    found = {each.name: each for each in parameters(TrimThings)}
    assert found["limit"].optional and found["limit"].type is int
    assert found["bits"].strengths == (8, 4)
    assert TrimThings.strength() == found["bits"]


def test_selection_honours_patterns_and_exact_names() -> None:
    context = Context(exclude=("embed*",), include=frozenset({"a", "embed.w"}))
    assert context.selects("a", "node")
    assert not context.selects("embed.w")
    assert not context.selects("b")


def test_randomness_depends_on_seed_and_key_only() -> None:
    first, again = Context(seed=1).rng("a").random(), Context(seed=1).rng("a").random()
    assert first == again
    assert first != Context(seed=2).rng("a").random()
    assert first != Context(seed=1).rng("b").random()


def test_an_unknown_pass_lists_the_known_ones() -> None:
    with pytest.raises(PassError, match=r"no such pass\. Known passes: .*store-compact"):
        get_pass("no-such")


def test_every_listed_pass_loads_under_both_spellings() -> None:
    for name in pass_names():
        assert get_pass(name) is get_pass(name.replace("-", "_"))
        assert get_pass(name).pass_name() == name
