"""Sentences from a hidden Markov chain whose words are ambiguous, and whose first word says which chain it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
WORDS, TAGS, CHAINS, LONGEST = 180, 8, 3, 18  # word 0 is padding, 1 to CHAINS name the chain


class Language:
    """Transitions differ by chain; half of the words may have either of two tags."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.transitions = rng.dirichlet(np.full(TAGS, 0.25), (CHAINS, TAGS))
        open_words = WORDS - CHAINS - 1
        self.emissions = np.zeros((TAGS, WORDS))
        tags = np.stack([rng.integers(0, TAGS, open_words), rng.integers(0, TAGS, open_words)])
        frequency = rng.gamma(0.6, 1, open_words) + 0.02
        for tag in tags:
            self.emissions[tag, np.arange(CHAINS + 1, WORDS)] += frequency
        self.emissions /= self.emissions.sum(axis=1, keepdims=True)

    def made(self, rng: np.random.Generator, count: int) -> tuple[Array, Array, Array]:
        """Words and tags (count, LONGEST) uint8, zero where padded, and lengths (count,)."""
        lengths = rng.integers(4, LONGEST + 1, count)
        chain = rng.integers(0, CHAINS, count)
        tags = np.zeros((count, LONGEST), np.uint8)
        words = np.zeros((count, LONGEST), np.uint8)
        words[:, 0] = chain + 1
        tag = rng.integers(0, TAGS, count)
        for place in range(1, LONGEST):
            tag = _drawn(rng, self.transitions[chain, tag])
            tags[:, place], words[:, place] = tag, _drawn(rng, self.emissions[tag])
        padded = np.arange(LONGEST) >= lengths[:, None]
        words[padded] = tags[padded] = 0
        return words, tags, lengths


def _drawn(rng: np.random.Generator, shares: Array) -> Array:
    """One index a row, by the row's shares."""
    return np.asarray((shares.cumsum(axis=1) < rng.random((len(shares), 1))).sum(axis=1).clip(0, shares.shape[1] - 1))


def right_of(scores: Array, tags: Array, lengths: Array) -> Array:
    """(sentences, 2): how many tags are right, and of how many; the first word has none."""
    places = np.arange(tags.shape[1])
    real = (places > 0) & (places < lengths[:, None])
    return np.stack([((scores.argmax(axis=-1) == tags) & real).sum(axis=1), real.sum(axis=1)], axis=1)
