"""What a search says of its runners-up: the front, the neighbours, the words."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.pipeline.weight_search.candidates import ANY_FAMILY, Table, WeightOption
from onnxcomp.pipeline.weight_search.runners_up import NEXT, accounts
from onnxcomp.registry import get_pass

CANDIDATES = [get_pass("quantize-weights")(bits=bits) for bits in (8, 6, 5, 4, 3, 2)]
CANDIDATES += [get_pass("cluster-weights")(bits=bits, granularity="channel") for bits in (6, 5, 4, 3, 2)]


def drawn(seed: int) -> list[WeightOption]:
    """A weight with an option by each candidate, in no order."""
    rng = np.random.default_rng(seed)
    found = [
        WeightOption(at, int(rng.integers(100, 4000)), float(rng.uniform(1e-6, 0.2)), at // 6)
        for at in rng.permutation(len(CANDIDATES)).tolist()
    ]
    return [WeightOption(None, 8192, 0.0), *found]


def nobody_beats(option: WeightOption, rivals: list[WeightOption]) -> bool:
    return not any(
        (each.size_bytes <= option.size_bytes and each.error < option.error)
        or (each.size_bytes < option.size_bytes and each.error <= option.error)
        for each in rivals
    )


@pytest.mark.parametrize("seed", range(20))
def test_beside_the_chosen_one_stand_the_next_that_nothing_beats(seed: int) -> None:
    options = drawn(seed)
    table = Table({"w": options}, influence={("w", ANY_FAMILY): 2.0})
    chosen = options[1 + seed % 11]
    made = accounts(table, {"w": options}, {"w": chosen}, CANDIDATES)["w"]
    rivals = [each for each in options if each is not chosen]
    smaller = [each for each in rivals if each.size_bytes <= chosen.size_bytes]
    larger = [each for each in rivals if each.size_bytes > chosen.size_bytes]
    wanted = sorted(each.size_bytes for each in smaller if nobody_beats(each, smaller))[-NEXT:]
    wanted += sorted(each.size_bytes for each in larger if nobody_beats(each, larger))[:NEXT]
    given = [each.size_bytes for each in made.alternatives]
    assert given == sorted({*wanted, chosen.size_bytes, 8192})
    assert made.chosen is not None and made.alternatives[made.chosen].size_bytes == chosen.size_bytes
    assert made.alternatives[made.chosen].divergence == pytest.approx(2.0 * chosen.error, rel=1e-3)
    assert made.influence == 2.0


def test_the_words_have_the_pass_and_always_its_strength() -> None:
    options = [WeightOption(None, 900, 0.0), WeightOption(0, 800, 0.1), WeightOption(10, 700, 0.2, 1)]
    made = accounts(Table({"w": options}), {"w": options}, {}, CANDIDATES)["w"]
    words = [each.what for each in made.alternatives]
    assert words == ["cluster-weights bits=2 granularity=channel", "quantize-weights bits=8", ""]
    assert made.chosen == 2 and made.influence is None
    assert [each.divergence for each in made.alternatives] == [None, None, None]


def test_choices_beyond_the_candidates_are_the_same_made_without_data() -> None:
    options = [WeightOption(None, 900, 0.0), WeightOption(len(CANDIDATES) + 3, 800, 0.1)]
    made = accounts(Table({"w": options}), {"w": options}, {"w": options[1]}, CANDIDATES)["w"]
    assert made.alternatives[0].what == "quantize-weights bits=4"
