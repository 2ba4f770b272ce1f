"""Channels and heads cut out of scored models, in one run.

    python -m benchmarks.cutting DATA [--models NAME,...] [--json FILE]

It wants the packages of the extra "bench": pip install -e '.[bench]'. DATA is as for ``benchmarks.scored``.

Every case is one recipe at a strength that is forced, whatever the budget says; calibration inputs are the only data.
Printed are the share of the MACs that is left, the bytes, the latency beside the original's and the metric, each with
the goal that it is held to.
"""

from __future__ import annotations

import operator

from benchmarks.forced import Case, main

PREPARED = "".join(
    f'[[step]]\npass = "{name}"\n\n' for name in ("inline-functions", "fold-constants", "fuse-batch-norm", "fuse-pad")
)
CHANNELS = PREPARED + '[[step]]\npass = "prune-channels"\n{how}\n\n'
HEADS = PREPARED + '[[step]]\npass = "prune-heads"\n{how}\n\n'

CASES = (
    Case("lenet300_mnist", "half of the hidden units", CHANNELS.format(how="ratio = 0.5"), operator.le, 2.6),
    Case("lenet5_caffe_mnist", "half of the MACs", CHANNELS.format(how="macs = 0.5"), operator.le, 1.2, 0.65),
    Case(
        "resnet8_cifar10_tf",
        "a quarter of the MACs",
        CHANNELS.format(how="macs = 0.75\nmultiple = 8"),
        operator.ge,
        76.0,
        0.85,
    ),
    Case("resnet8_cifar10_tf", "to 0.85 of the time", CHANNELS.format(how="latency = 0.85"), operator.ge, 76.0, 0.85),
    Case(
        "minilm_l6_stsb",
        "a quarter of heads and hidden units",
        HEADS.format(how="ratio = 0.25") + CHANNELS.format(how="ratio = 0.25\nmultiple = 16"),
        operator.ge,
        82.0,
        0.85,
    ),
    Case(
        "minilm_l6_stsb",
        "a quarter of the heads, to 0.85 of the rest's time",
        HEADS.format(how="ratio = 0.25") + CHANNELS.format(how="latency = 0.85"),
        operator.ge,
        82.0,
        0.85,
    ),
    Case("minilm_l6_stsb", "to 0.85 of the time", CHANNELS.format(how="latency = 0.85"), operator.ge, 82.0, 0.85),
)

if __name__ == "__main__":
    main(CASES, __doc__.splitlines()[0])
