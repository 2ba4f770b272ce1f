"""A Keras classifier of coloured pictures (N, 20, 20, 3) in 0..255, channels last, scaled in the graph."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run
from benchmarks.judge.kinds._scenes import SHAPES, shape_mask

KIND = "classifier"
EXPORTER = "tf2onnx"
SIZE = 20


def pictures(seed: int, count: int) -> tuple[Array, Array]:
    """Pictures (count, 20, 20, 3) uint8 in steps of 32, and classes (count,) uint8."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(SHAPES), count).astype(np.uint8)
    images = np.zeros((count, SIZE, SIZE, 3))
    for index, kind in enumerate(labels):
        images[index] = rng.uniform(50, 200, 3)
        across, radius = rng.uniform(-1, 1, 3), rng.uniform(4, 8)
        images[index] += 30 * across * np.linspace(-1, 1, SIZE)[:, None]
        for _ in range(3):
            spot = shape_mask("square", *rng.uniform(0, SIZE, 2), rng.uniform(1, 3), 0, SIZE)
            images[index][spot] += rng.normal(0, 30, 3)
        x, y = rng.uniform(radius, SIZE - radius, 2)
        images[index][shape_mask(SHAPES[kind], x, y, radius, rng.uniform(0, 6.3), SIZE)] += rng.choice([-1, 1], 3) * 75
    images += rng.normal(0, 60, images.shape) * (rng.random((count, SIZE, SIZE, 1)) < 0.05)
    return (np.clip(np.round(images / 32), 0, 7) * 32).astype(np.uint8), labels


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras
    import tensorflow as tf
    import tf2onnx
    from keras import layers

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(seed)
    images, labels = pictures(seed, 10_000)
    blocks: list[layers.Layer] = [layers.Rescaling(1 / 127.5, offset=-1)]
    for width, stride in ((32, 1), (64, 2), (96, 2), (128, 1)):
        layer = layers.SeparableConv2D if width > 32 else layers.Conv2D
        blocks += [layer(width, 3, stride, "same", use_bias=False), layers.BatchNormalization(), layers.ReLU()]
    model = keras.Sequential(
        [keras.Input((SIZE, SIZE, 3)), *blocks, layers.GlobalAveragePooling2D(), layers.Dense(len(SHAPES), "softmax")]
    )
    epochs = 7
    rate = keras.optimizers.schedules.CosineDecay(4e-3, epochs * len(images) // 64)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(images.astype(np.float32), labels, batch_size=64, epochs=epochs, verbose=0)
    signature = [tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32, name="image")]

    def call(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": model(image, training=False)}

    traced = tf.function(call, input_signature=signature, autograph=False)
    tf2onnx.convert.from_function(traced, signature, opset=17, output_path=str(folder / "model.onnx"))
    images, labels = pictures(seed + 1, 1500)
    np.savez_compressed(folder / "calib.npz", image=pictures(seed + 2, 256)[0].astype(np.float32))
    np.savez_compressed(folder / "test.npz", images=images, labels=labels)


def units(run: Run, test: dict[str, Array]) -> Array:
    """(pictures, 1): 1 where the winner is right."""
    found = run({"image": test["images"].astype(np.float32)})["probabilities"]
    return (found.argmax(1) == test["labels"])[:, None]


def score(units: Array) -> float:
    """Accuracy in percent."""
    return figures.percent(units)
