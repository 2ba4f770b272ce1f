"""Why a weight got what it got: rates that a hand can check."""

from __future__ import annotations

import itertools

import pytest

from onnxcomp.receipt import Alternative, Entry, Receipt
from onnxcomp.report.prices import Offer, going_rate, offers, reasons, verdict_on
from onnxcomp.report.story import Account
from tests.report.accounts import account


def offer(saved: int, added: float | None, *, is_chosen: bool = False) -> Offer:
    return Offer(Alternative("other", 100, 0.1, 0.1), saved, added, is_chosen=is_chosen)


def test_a_rate_is_bytes_for_each_thousandth() -> None:
    account_ = Account.of(account())
    by_label = {each.label: each for each in offers(account_.weights[0])}
    stronger, milder = by_label["cluster-weights bits=3"], by_label["quantize-weights bits=5"]
    assert (stronger.saved, stronger.rate) == (200, pytest.approx(200 / 0.010 / 1000))
    assert (milder.saved, milder.rate) == (-300, pytest.approx(300 / 0.0006 / 1000))
    assert stronger.is_stronger and milder.is_milder and not milder.is_stronger


def test_no_rate_where_one_is_better_in_both_or_nothing_was_measured() -> None:
    assert offer(100, -0.1).rate is None and offer(-100, 0.1).rate is None and offer(100, None).rate is None


def test_the_going_rate_is_the_one_that_the_fewest_choices_speak_against() -> None:
    made = Account.of(account())
    found = going_rate(made)
    assert found is not None
    below = [each.rate for story in made.searched for each in offers(story) if each.is_stronger and each.rate]
    above = [each.rate for story in made.searched for each in offers(story) if each.is_milder and each.rate]

    def violations(rate: float) -> int:
        return sum(each > rate for each in below) + sum(each < rate for each in above)

    least = min(violations(rate) for rate in itertools.chain(below, above))
    assert violations(found) == least == 0
    assert max(below) <= found <= min(above)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (offer(0, 0.0, is_chosen=True), "chosen"),
        (offer(10, 0.001), "too dear"),
        (offer(1000, 0.001), "cheap by prediction: saves"),
        (offer(-1000, -0.001), "not worth it"),
        (offer(-10, -0.001), "cheap by prediction: takes"),
        (offer(-10, 0.001), "no better in either"),
        (offer(10, -0.001), "better by prediction alone"),
        (offer(10, None), "more error"),
        (offer(-10, None), "more bytes"),
    ],
)
def test_every_offer_has_a_word(given: Offer, word: str) -> None:
    assert verdict_on(given, 100.0).startswith(word)


def told(receipt: Receipt, name: str) -> str:
    made = Account.of(receipt)
    [story] = [each for each in made.weights if each.name == name]
    return " ".join(reasons(story, made, going_rate(made)))


def test_the_words_name_what_was_chosen_the_next_on_either_side_and_the_rate() -> None:
    words = told(account(), "conv.weight")
    assert "8,192 to 840 bytes, 9.75x smaller, stored as codebook, 4 bits" in words
    assert "chose cluster-weights bits=4 for it, about 800 bytes" in words
    assert "predicted to cause 0.002 of divergence, 95% of what all weights" in words  # of 0.002 + 0.0001
    assert "moves the model's outputs by 0.015: number 2 of 2 by sensitivity" in words
    assert "bits=3 would have saved 200 bytes more and added 0.01: 20 B for each 0.001" in words
    assert "bits=5 would have taken 300 bytes more and given back 0.0006: 500 B for each 0.001" in words


def test_the_next_milder_may_be_the_weight_as_it_was() -> None:
    assert "Left as it was it would have taken 2,260 bytes more and given back 0.0001" in told(account(), "fc.weight")


def test_what_became_of_weights_that_no_search_saw_is_said() -> None:
    assert "gone" in told(account(), "lost")
    assert "The run made it: 32 bytes." in told(account(), "made")
    assert "took it back: taken back" in told(account(), "bias")
    receipt = account()
    receipt.steps[1].taken_back = []
    assert "It is as it was: 128 bytes. store-compact left it alone: no storage is smaller." in told(receipt, "bias")


def test_a_choice_that_was_taken_back_is_said_not_to_stand() -> None:
    receipt = account()
    assert "did not stand" not in told(receipt, "conv.weight")
    receipt.steps[1].decision, receipt.steps[1].changed = "taken back", []
    assert "That did not stand" in told(receipt, "conv.weight")


def test_a_weight_that_the_search_left_alone_is_said_to_be() -> None:
    receipt = account()
    receipt.weights["conv.weight"].chosen = 3
    assert "The search left it as it was." in told(receipt, "conv.weight")


def test_steps_that_name_a_node_are_about_the_weights_that_it_reads() -> None:
    receipt = account()
    receipt.graphs.nodes[0].reads.append("bias")  # as long as it was: no channel of it was cut
    receipt.steps[1].changed.append(Entry("group", "2 of 32 channels cut", {"kept": 30, "nodes": ["conv"]}))
    receipt.steps[2].changed.append(Entry("conv", "dropped a default"))  # of a step that loses nothing
    receipt.steps[1].changed.append(Entry("fc.weight", "two factors", {"nodes": ["conv"]}))  # it names its weight
    stories = {each.name: [event.what for event in each.events] for each in Account.of(receipt).weights}
    assert stories["conv.weight"] == ["16 levels", "2 of 32 channels cut", "codebook, 4 bits"]
    assert "2 of 32 channels cut" not in stories["bias"]
    assert stories["fc.weight"] == ["8 bits", "two factors"]
