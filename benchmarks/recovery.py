"""Models compressed hard and trained back towards the original without labels, in one run.

    python -m benchmarks.recovery DATA [--models NAME,...] [--cases NUMBER,...] [--json FILE]

It wants the packages of the extra "bench": pip install -e '.[bench]'. DATA is as for ``benchmarks.scored``, with
``mnist_unlabelled.npz`` and ``cifar10_unlabelled.npz`` (pictures ``x``) beside the models' folders.

Every case is one recipe, whatever the budget says. The metric is that of the deployable file.
"""

from __future__ import annotations

import json
import operator

from benchmarks.forced import Case, main

PREPARED = "".join(
    f'[[step]]\npass = "{name}"\n\n'
    for name in ("remove-noops", "inline-functions", "fold-constants", "fuse-batch-norm", "fuse-pad")
)
STORED = "".join(
    f'[[step]]\npass = "{name}"\n\n' for name in ("shorten-vectors", "store-compact", "drop-unused", "drop-defaults")
)
STORED += '[[step]]\npass = "strip-metadata"\nshorten_names = true\n\n'


def together(*steps: str, stored: bool = True) -> str:
    """A recipe of steps that are judged at the end."""
    whole = ",\n  ".join(steps)
    return f'{PREPARED}[[step]]\nverify = "end"\nsequence = [\n  {whole},\n]\n\n{STORED if stored else ""}'


def one(name: str, **fields: object) -> str:
    """A pass in a sequence."""
    told = [f"{key} = {json.dumps(value)}" for key, value in {"pass": name, **fields}.items()]
    return f"{{{', '.join(told)}}}"


CASES = (
    Case(
        "lenet300_mnist", "deep compression",
        together(
            one("prune-weights", sparsity=0.9, scope="model"), one("finetune", steps=2000),
            one("prune-weights", sparsity=0.94, scope="model"), one("finetune", steps=12000),
            one("cluster-weights", bits=3.0, granularity="tensor"), one("finetune", steps=6000, temperature=2.0),
        ),
        operator.le, 1.60, most_bytes=21_300, unlabelled="mnist_unlabelled",
    ),
    Case(
        "lenet5_caffe_mnist", "deep compression",
        together(
            one("prune-weights", sparsity=0.92, scope="model"), one("finetune", steps=800),
            one("prune-weights", sparsity=0.965, scope="model"), one("finetune", steps=3500),
            one("cluster-weights", bits=3.0, granularity="tensor"), one("finetune", steps=1800, temperature=2.0),
        ),
        operator.le, 0.90, most_bytes=24_000, unlabelled="mnist_unlabelled",
    ),
    Case(
        "lenet5_caffe_mnist", "a student of a twelfth of the parameters",
        together(one("prune-channels", size=1 / 12), one("finetune", steps=8000), stored=False),
        operator.le, 1.0, unlabelled="mnist_unlabelled",
    ),
    Case(
        "resnet8_cifar10_tf", "all weights in 3 bits",
        together(
            one("cluster-weights", bits=3.0, granularity="channel"), one("match-outputs"),
            one("finetune", steps=1500, rate=0.003, rounding="fixed", mixup=1.0),
            one("finetune", steps=400, rate=0.001, mixup=1.0),
        ),
        operator.ge, 83.4, most_bytes=36_000, unlabelled="cifar10_unlabelled",
    ),
    Case(
        "resnet8_cifar10_tf", "half of the MACs cut, trained, int8",
        together(
            one("prune-blocks", ratio=0.01, mean=False, exclude=["model/add_1*", "model/add_2*"]), one("remove-noops"),
            one("prune-channels", macs=0.8, multiple=16),
            one(
                "finetune", steps=18000, rate=0.005, batch_size=32, mixup=1.0, inner=2.0,
                inner_tensors="model/activation_4/Relu:0,model/activation_6/Relu:0",
            ),
            one("quantize-static"), one("finetune", steps=150, rate=0.001, mixup=1.0), stored=False,
        ),
        operator.ge, 81.5, latency=0.40, unlabelled="cifar10_unlabelled",
    ),
    Case(
        "resnet8_cifar10_tf", "ternary weights but for the first and the last layer",
        together(
            one("cluster-weights", bits=1.6, granularity="channel", exclude=["model/conv2d/*", "model/dense/*"]),
            one("match-outputs"),
            one("finetune", steps=900, rate=0.003, rounding="straight-through", mixup=1.0),
        ),
        operator.ge, 80.0, most_bytes=26_000, unlabelled="cifar10_unlabelled",
    ),
    Case(
        "lenet5_caffe_mnist", "half of the channels cut, trained, int8",
        together(
            one("prune-channels", ratio=0.5, even=True), one("finetune", steps=6000),
            one("quantize-static"), one("finetune", steps=600), stored=False,
        ),
        operator.le, 0.95, latency=0.35, unlabelled="mnist_unlabelled",
    ),
)  # fmt: skip

if __name__ == "__main__":
    main(CASES, __doc__.splitlines()[0])
