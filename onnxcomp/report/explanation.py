"""Why one weight got what it got, in words, for a terminal or a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxcomp.errors import ParameterError
from onnxcomp.nearest import nearest
from onnxcomp.receipt import Receipt
from onnxcomp.report.prices import Offer, going_rate, offers, reasons, verdict_on
from onnxcomp.report.story import Account, Event, WeightStory

NEAREST = 3  # names to offer in place of a wrong one
ALIKE = 0.4  # as difflib counts it


@dataclass(frozen=True)
class Explanation:
    """What became of a weight. reasons: sentences; events: what the steps did to it, in order; offers: what it could
    have become, fewest bytes first, each with the word on it."""

    name: str
    reasons: list[str]
    events: list[Event]
    offers: list[tuple[Offer, str]]

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "weight": self.name,
            "reasons": self.reasons,
            "events": [{"step": each.step, "decision": each.decision, "what": each.what} for each in self.events],
            "alternatives": [
                {
                    "what": offer.alternative.what,
                    "bytes": offer.alternative.size_bytes,
                    "error": offer.alternative.error,
                    "divergence": offer.alternative.divergence,
                    "verdict": word,
                }
                for offer, word in self.offers
            ],
        }


def explain(receipt: Receipt, name: str) -> Explanation:
    """Why the weight called ``name`` got what it got; ParameterError with the nearest names where there is none."""
    account = Account.of(receipt)
    story = next((each for each in account.weights if each.name == name), None)
    if story is None:
        raise ParameterError(_unknown(receipt, account, name))
    rate = going_rate(account)
    words = [(each, verdict_on(each, rate)) for each in offers(story)]
    return Explanation(name, reasons(story, account, rate), list(story.events), words)


def _unknown(receipt: Receipt, account: Account, name: str) -> str:
    """No such weight, and which may be meant: those that a node of this name reads, or that are called much like it."""
    known = {each.name: each for each in account.weights}
    if not known:
        return f"the receipt names no weights: {name} cannot be among them."
    read = [each for node in receipt.graphs.nodes if node.name == name for each in node.reads]
    if read:
        return f"{name} is a node, no weight; it reads {', '.join(read)}."
    likely = [*_holding(known, name), *nearest(name, known, most=NEAREST, alike=ALIKE)]
    meant = ", ".join(list(dict.fromkeys(likely))[:NEAREST])
    return f"the receipt has no weight {name}." + (f" Did you mean {meant}?" if meant else "")


def _holding(known: dict[str, WeightStory], name: str) -> list[str]:
    """Where the name is part of others, these, shortest first."""
    return sorted((each for each in known if name and name.lower() in each.lower()), key=len)
