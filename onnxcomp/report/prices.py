"""What a byte was worth in a run, and why a weight got what it got: in words.

A search gives each weight the option of least bytes + rate * divergence. The receipt has what each weight could have
become beside what it became, which says between which rates the choice lies:

    4 bits -> 3 bits saves 300 bytes and adds 0.005: worth it below 60 bytes per 0.001
    4 bits -> 5 bits takes 360 bytes and gives back 0.0015: worth it above 240 bytes per 0.001
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxcomp import formats
from onnxcomp.receipt import Alternative
from onnxcomp.report.story import Account, WeightStory

UNIT = 1e-3  # of divergence, by which rates are given


@dataclass(frozen=True)
class Offer:
    """An alternative beside what was chosen. saved: bytes that it takes less; added: divergence that it causes more,
    None where nothing told what either causes."""

    alternative: Alternative
    saved: int
    added: float | None
    is_chosen: bool = False

    @property
    def label(self) -> str:
        """What it is, in words."""
        return self.alternative.what or "as it was"

    @property
    def rate(self) -> float | None:
        """Bytes for each ``UNIT`` of divergence, where one is given up for the other."""
        if self.added is None or self.saved * self.added <= 0:
            return None
        return self.saved / self.added * UNIT

    @property
    def is_stronger(self) -> bool:
        """Whether it saves bytes for divergence."""
        return self.rate is not None and self.saved > 0

    @property
    def is_milder(self) -> bool:
        """Whether it saves divergence for bytes."""
        return self.rate is not None and self.saved < 0


def offers(story: WeightStory) -> list[Offer]:
    """All that a weight could have become, fewest bytes first."""
    chosen = story.chosen
    if chosen is None:
        return []
    return [
        Offer(each, chosen.size_bytes - each.size_bytes, _added(chosen, each), is_chosen=each is chosen)
        for each in story.account.alternatives
    ]


def _added(chosen: Alternative, other: Alternative) -> float | None:
    if chosen.divergence is None or other.divergence is None:
        return None
    return other.divergence - chosen.divergence


def going_rate(account: Account) -> float | None:
    """The bytes that ``UNIT`` of divergence bought in the run: the rate that the fewest choices speak against."""
    below: list[float] = []
    above: list[float] = []
    for story in account.searched:
        for each in offers(story):
            if each.rate is not None:
                (below if each.is_stronger else above).append(each.rate)
    rates = sorted({*below, *above})
    if not rates:
        return None

    def against(rate: float) -> float:
        too_low = [math.log(each / rate) for each in below if each > rate]
        too_high = [math.log(rate / each) for each in above if each < rate]
        return math.fsum([*too_low, *too_high])

    return min(rates, key=against)


def verdict_on(offer: Offer, rate: float | None) -> str:
    """Why the offer was not taken, or that it was."""
    if offer.is_chosen:
        return "chosen"
    if offer.added is None or rate is None:
        return "more bytes" if offer.saved <= 0 else "more error"
    if offer.rate is None:
        return "no better in either" if offer.saved <= 0 and offer.added >= 0 else "better by prediction alone"
    price = f"{_bytes(offer.rate)} for each {UNIT:g}"
    if offer.is_stronger:
        return f"too dear: saves {price}" if offer.rate <= rate else f"cheap by prediction: saves {price}"
    return f"not worth it: takes {price}" if offer.rate >= rate else f"cheap by prediction: takes {price}"


def reasons(story: WeightStory, account: Account, rate: float | None) -> list[str]:
    """Why a weight got what it got, in sentences."""
    found = [_got(story)]
    if story.account.alternatives:
        found += _chosen_words(story, account)
        found += _stronger_words(offers(story), rate) + _milder_words(offers(story), rate)
    found += [f"{each.step} took it back: {each.what}." for each in story.events if each.decision == "taken back"]
    if not any(each.is_change for each in story.events):
        found += [f"{each.step} left it alone: {each.what}." for each in story.events if each.decision == "skipped"]
    return found


def _got(story: WeightStory) -> str:
    if story.before is None:
        return f"The run made it: {story.after:,} bytes."
    if story.is_gone:
        return f"It had {story.before:,} bytes and is gone: a step has folded, merged or cut it."
    if story.after == story.before and not any(each.is_change for each in story.events):
        return f"It is as it was: {story.before:,} bytes."
    change = formats.smaller(story.before, story.after)
    stored = f", stored as {story.stored}" if story.stored else ""
    return f"It went from {story.before:,} to {story.after:,} bytes, {change}{stored}."


def _chosen_words(story: WeightStory, account: Account) -> list[str]:
    chosen = story.chosen
    if chosen is None:
        return []
    if not chosen.what:
        return ["The search left it as it was."]
    found = [f"The search chose {chosen.what} for it, about {chosen.size_bytes:,} bytes."]
    if not story.chosen_stands:
        found.append("That did not stand: the step was taken back.")
    if chosen.divergence is not None:
        part = f", {chosen.divergence / account.harm:.0%} of what all weights were predicted to" if account.harm else ""
        found.append(f"Alone it was predicted to cause {formats.significant(chosen.divergence)} of divergence{part}.")
    if story.account.influence is not None:
        found.append(_sensitivity_words(story, account.searched))
    return found


def _sensitivity_words(story: WeightStory, searched: Sequence[WeightStory]) -> str:
    ranked = sorted((each.account.influence or 0.0 for each in searched), reverse=True)
    place = ranked.index(story.account.influence or 0.0) + 1
    moved = formats.significant((story.account.influence or 0.0) / 100)
    return (
        f"An error of 1% of its node's output moves the model's outputs by {moved}: "
        f"number {place} of {len(ranked)} by sensitivity."
    )


def _stronger_words(found: Sequence[Offer], rate: float | None) -> list[str]:
    stronger = [each for each in found if each.is_stronger]
    nearest = max(stronger, key=lambda each: each.alternative.size_bytes, default=None)
    if nearest is None or nearest.added is None or nearest.rate is None or rate is None:
        return []
    words = (
        f"{nearest.label} would have saved {nearest.saved:,} bytes more and added "
        f"{formats.significant(nearest.added)}: {_bytes(nearest.rate)} for each {UNIT:g} of divergence"
    )
    if nearest.rate <= rate:
        return [f"{words}, where other weights save {_bytes(rate)}."]
    return [f"{words}. That looks better than the {_bytes(rate)} of other weights; whole trials decided otherwise."]


def _milder_words(found: Sequence[Offer], rate: float | None) -> list[str]:
    milder = [each for each in found if each.is_milder]
    nearest = min(milder, key=lambda each: each.alternative.size_bytes, default=None)
    if nearest is None or nearest.added is None or nearest.rate is None or rate is None:
        return []
    other = nearest.alternative.what or "Left as it was it"
    words = (
        f"{other} would have taken {-nearest.saved:,} bytes more and given back "
        f"{formats.significant(-nearest.added)}: {_bytes(nearest.rate)} for each {UNIT:g} of divergence"
    )
    if nearest.rate >= rate:
        return [f"{words}, which given to other weights saves {_bytes(rate)}."]
    return [f"{words}. That looks cheap beside {_bytes(rate)} of other weights; whole trials decided otherwise."]


def _bytes(value: float) -> str:
    return f"{formats.significant(value)} B" if value < 1000 else formats.size(value)
