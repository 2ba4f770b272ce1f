"""Blocks of LSTM, GRU and RNN with every optional input and direction."""

from typing import Any

import numpy as np

from onnxcomp.testing.models.building import Builder, Value, block
from onnxcomp.testing.models.storage import random_weight

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@block(ranks=(3,), grows=True)
def lstm(b: Builder, x: Value) -> Value:
    return recurrent(b, x, "LSTM")


@block(ranks=(3,), grows=True)
def gru(b: Builder, x: Value) -> Value:
    return recurrent(b, x, "GRU")


@block(ranks=(3,), grows=True)
def rnn(b: Builder, x: Value) -> Value:
    return recurrent(b, x, "RNN")


def recurrent(b: Builder, x: Value, op: str) -> Value:
    """(batch, time, features) -> (batch, time, directions * hidden), or the last state as (batch, ...)."""
    batch, time, features = x.shape
    hidden = b.choice([4, 8, 16])
    direction = b.choice(["forward", "reverse", "bidirectional"])
    directions = 2 if direction == "bidirectional" else 1
    attributes: dict[str, Any] = {"hidden_size": hidden}
    if direction != "forward" or b.chance(50):
        attributes["direction"] = direction
    _choose_attributes(b, op, directions, attributes)
    inputs = [b.transpose(x, [1, 0, 2]).name]
    inputs.append(random_weight(b, (directions, GATES[op] * hidden, features), fan_in=features))
    inputs.append(random_weight(b, (directions, GATES[op] * hidden, hidden), fan_in=hidden))
    inputs += _optional_inputs(b, op, batch, time, hidden, directions)
    if b.chance(60):  # Y: (time, directions, batch, hidden)
        outputs = b.nodes_out(op, inputs, b.choice([1, 2]), **attributes)
        y = b.transpose(Value(outputs[0], (time, directions, batch, hidden)), [2, 0, 1, 3])
        return b.reshape(y, [time, directions * hidden])
    states = _last_states(b, op, inputs, attributes)  # each (directions, batch, hidden)
    y = b.transpose(Value(states, (directions, batch, hidden)), [1, 0, 2])
    return b.reshape(y, [directions * hidden])


def _choose_attributes(b: Builder, op: str, directions: int, attributes: dict[str, Any]) -> None:
    if op == "GRU" and b.chance(50):
        attributes["linear_before_reset"] = 1
    if b.chance(15):
        attributes["clip"] = 2.0
    if b.chance(15):
        functions = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Relu"]}[op]
        attributes["activations"] = functions * directions


def _optional_inputs(b: Builder, op: str, batch: int, time: int, hidden: int, directions: int) -> list[str]:
    """Choose B, sequence_lens, initial_h and, for LSTM, initial_c and P; trailing ones may be left out.

    Constants over the batch need a fixed batch.
    """
    fixed = not b.state.symbolic_batch
    gates = GATES[op]
    inputs = [random_weight(b, (directions, 2 * gates * hidden), fan_in=16) if b.chance(60) else ""]
    lengths = [b.integer(1, time) for _ in range(batch)]
    inputs.append(b.constant(lengths, np.int32) if fixed and b.chance(25) else "")
    initial = fixed and b.chance(50)
    inputs.append(random_weight(b, (directions, batch, hidden), fan_in=4) if initial else "")
    if op == "LSTM":
        inputs.append(random_weight(b, (directions, batch, hidden), fan_in=4) if initial else "")
        inputs.append(random_weight(b, (directions, 3 * hidden), fan_in=16) if b.chance(20) else "")
    while inputs and not inputs[-1]:
        inputs.pop()
    return inputs


def _last_states(b: Builder, op: str, inputs: list[str], attributes: dict[str, Any]) -> str:
    """Add the node with its first output left out and return Y_h."""
    outputs = b.nodes_out(op, inputs, 2, **attributes)
    node = b.nodes[-1]
    if b.chance(50):
        node.output[0] = ""
    return outputs[1]
