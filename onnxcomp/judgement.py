"""What a run came to, in a word or two that all who tell of it use: the command, Python, the page."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnxcomp.budget import LARGEST_DROP
from onnxcomp.receipt import Receipt

GOOD, BAD, PLAIN = "good", "bad", "plain"


@dataclass(frozen=True)
class Judgement:
    """word: such as PASS. tone: whether that is good news. sentence: what it means."""

    word: str
    tone: str
    sentence: str


def judgement(receipt: Receipt) -> Judgement:
    """How a run ended, the goals that it missed included."""
    found = _of_outputs(receipt)
    if not receipt.missed:
        return found
    return replace(
        found, word=f"{found.word}, GOAL MISSED", tone=BAD, sentence=f"{found.sentence} A goal was not reached."
    )


def is_exact(receipt: Receipt) -> bool:
    """Whether no kept step may lose something: those that may are each judged."""
    return all(each.divergence is None for each in receipt.steps if each.decision.startswith("kept"))


def limit_of(receipt: Receipt) -> float | None:
    """The most that outputs may be off by; None for no limit."""
    limit = receipt.verdict.get("limit", receipt.metric["limit"])
    return None if limit is None or float(limit) >= LARGEST_DROP else float(limit)


def _of_outputs(receipt: Receipt) -> Judgement:
    verdict = receipt.verdict
    failed = Judgement("FAIL", BAD, "The outputs are further from the original's than was allowed.")
    if not receipt.applied:
        return Judgement("UNCHANGED", PLAIN, "No step made the model better: the result is the original.")
    if is_exact(receipt):
        exact = Judgement("PASS, exact steps only", GOOD, "Nothing was done that could lose something.")
        return exact if verdict.get("passed") else failed
    if receipt.data.get("random"):
        blind = "Random inputs show breakage only: no calibration data were given."
        return Judgement("RUNS, accuracy not judged", PLAIN, blind)
    if not verdict.get("verified", True):
        return Judgement("NOT JUDGED", BAD, "Nothing could be compared with the original.")
    if limit_of(receipt) is None:
        free = "The outputs were compared with the original's; any distance was allowed."
        return Judgement("MEASURED, no limit", PLAIN, free)
    passed = Judgement("PASS", GOOD, "The outputs are as near to the original's as was asked.")
    return passed if verdict.get("passed") else failed
