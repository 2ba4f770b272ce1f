"""What names say of states: h0 and hn, past.0.key and present.0.key, cache_in and cache_out, state and stateN.

A name is cut into words; those that only say "before" or "after" are left out, and what is left must be the same:
past_key_values.0.key -> (0, key) <- present.0.key
"""

from __future__ import annotations

import itertools
import re

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
BEFORE = frozenset({"past", "previous", "prev", "old", "initial", "init", "in", "input", "inp"})
AFTER = frozenset({"present", "next", "new", "updated", "current", "cur", "out", "output", "final"})
PAST = frozenset({"past", "previous", "prev"})
PRESENT = frozenset({"present", "next", "new"})
CACHES = frozenset((when, "key", what) for when in ("past", "present") for what in ("value", "values"))
LAST_BEFORE = frozenset({"0", "i"})
LAST_AFTER = frozenset({"n", "o", "t", "1"})
STATE_WORDS = frozenset(
    {"h", "c", "hc", "hx", "cx", "hn", "cn", "hidden", "cell", "state", "states", "cache", "caches", "cached", "mem",
     "mems", "memory", "memories", "kv", "buf", "buffer", "buffers", "lstm", "gru", "rnn", "carry", "recurrent"}
)  # fmt: skip
# Inputs that say how the others are to be read, and carry no data themselves.
MINOR = re.compile(r"mask|position|pos_?ids|length|_lens?\b|\blens?_|seq_?lens?|use_cache|\bsr\b|rate|cache_pos", re.I)
ENCODER = re.compile(r"encoder|cross", re.IGNORECASE)  # what belongs to a sequence, not to a step of it
FLAG = re.compile(r"use_?(cache|past)", re.I)
COUNTING = re.compile(r"position|pos_?ids|cache_?pos|past_?(seq_?)?len|offset|start_?pos|seq_?lens?|total_?seq", re.I)

Stem = tuple[str, ...]


def is_pair(before: str, after: str) -> bool:
    """Whether an input and an output are called like one state before and after a step."""
    numbered = re.fullmatch(r"(r\d+)_?in?", before)  # recurrent video models: r1i and r1o
    if numbered and re.fullmatch(rf"{numbered[1]}_?o(ut)?", after):
        return True
    if not (_speaks_of_state(before) or _speaks_of_state(after) or _speaks_of_time(before, after)):
        return False
    return bool(_stems(before, BEFORE, LAST_BEFORE) & _stems(after, AFTER, LAST_AFTER))


def is_exact_pair(before: str, after: str) -> bool:
    """The same, without leaving out a last word that may number layers as well."""
    return is_pair(before, after) and _stem(_words(before), BEFORE) == _stem(_words(after), AFTER)


def is_state(name: str) -> bool:
    """Whether an input is called like a state, whatever the outputs are called."""
    return _speaks_of_state(name) or bool(PAST & set(_words(name)))


def _words(name: str) -> Stem:
    return tuple(word.lower() for word in WORD.findall(name))


def _speaks_of_state(name: str) -> bool:
    words = _words(name)
    hidden_states = ("hidden", "states") in itertools.pairwise(words)  # what transformers call activations
    return not hidden_states and bool(STATE_WORDS & set(words))


def _speaks_of_time(before: str, after: str) -> bool:
    return bool(PAST & set(_words(before))) and bool(PRESENT & set(_words(after)))


def _stem(words: Stem, marks: frozenset[str]) -> Stem:
    rest = words[3:] if words[:3] in CACHES and len(words) > 3 else words
    return tuple(word for word in rest if word not in marks)


def _stems(name: str, marks: frozenset[str], last: frozenset[str]) -> set[Stem]:
    """What is left of a name, with and without a last word that may count steps: h0, hn, h_t, r1i."""
    stem = _stem(_words(name), marks)
    found = {stem}
    if len(stem) > 1 and stem[-1] in last:
        found.add(stem[:-1])
    if stem and re.fullmatch(r"[hc][nto]", stem[-1]) and marks is AFTER:
        found.add((*stem[:-1], stem[-1][0]))
    return found
