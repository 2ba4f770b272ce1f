"""Five landmarks of a drawn face (eyes, nose, corners of the mouth) as places in 0..1, output (N, 10)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run
from benchmarks.judge.kinds._scenes import background, contrast, finish, shape_mask

KIND = "landmarks"
EXPORTER = "torch-torchscript"
SIZE, NEAR = 24, 0.05
FACE = np.array([[-0.42, -0.3], [0.42, -0.3], [0.0, 0.1], [-0.35, 0.45], [0.35, 0.45]])


def faces(seed: int, count: int) -> tuple[Array, Array]:
    """Pictures (count, 24, 24) uint8 and places (count, 5, 2) float32, across and down."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, SIZE, SIZE), np.uint8)
    places = np.zeros((count, 5, 2), np.float32)
    for index in range(count):
        radius, angle = rng.uniform(6, 10), rng.normal(0, 0.35)
        middle = rng.uniform(radius - 1, SIZE - radius + 1, 2)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        points = middle + (FACE + rng.normal(0, 0.05, FACE.shape)) @ turn * radius
        picture = background(rng, SIZE, 2)
        picture[shape_mask("disc", *middle, radius, 0, SIZE)] += contrast(rng, 25, 60)
        drawn_face(picture, points, radius, contrast(rng, 30, 80))
        if rng.random() < 0.2:  # something stands before a part of it
            hidden = shape_mask("square", *rng.uniform(4, SIZE - 4, 2), rng.uniform(2, 4), 0, SIZE)
            picture[hidden] = rng.uniform(60, 190)
        images[index], places[index] = finish(rng, picture), points / SIZE
    return images, places


def drawn_face(picture: Array, points: Array, radius: float, brightness: float) -> None:
    """Draw eyes, nose and mouth into the picture."""
    for x, y in points[:3]:
        picture[shape_mask("disc", x, y, max(radius * 0.14, 0.8), 0, SIZE)] += brightness
    for share in np.linspace(0, 1, 12):
        x, y = (points[3] * (1 - share) + points[4] * share).astype(int).clip(0, SIZE - 1)
        picture[y, x] += brightness / 3


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    from torch import nn

    from benchmarks.judge import training

    training.start(seed)
    images, places = faces(seed, 9000)

    def conv(inner: int, outer: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.Hardswish()]

    layers = [*conv(1, 16, 1), *conv(16, 24, 2), *conv(24, 32, 1), *conv(32, 32, 2), nn.Conv2d(32, 16, 1)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(576, 48), nn.Hardswish(), nn.Linear(48, 10), nn.Sigmoid())
    data = training.tensors(images[:, None] / np.float32(255), places.reshape(-1, 10))
    training.fit(net, lambda x, y: (net(x) - y).abs().mean(), data, epochs=9, rate=4e-3)
    axes = {"image": {0: "batch"}, "landmarks": {0: "batch"}}
    training.export_torchscript(
        net, (data[0][:2],), folder / "model.onnx", inputs=["image"], outputs=["landmarks"], axes=axes
    )
    images, places = faces(seed + 1, 1200)
    calib = faces(seed + 2, 256)[0][:, None] / np.float32(255)
    np.savez_compressed(folder / "calib.npz", image=calib)
    np.savez_compressed(folder / "test.npz", images=images, places=places.astype(np.float16))


def units(run: Run, test: dict[str, Array]) -> Array:
    """Per picture and landmark: 1 where it is found within 0.05 of its place."""
    found = run({"image": test["images"][:, None] / np.float32(255)})["landmarks"].reshape(-1, 5, 2)
    return np.hypot(*np.moveaxis(found - test["places"].astype(np.float32), -1, 0)) < NEAR


def score(units: Array) -> float:
    """Landmarks found, in percent."""
    return figures.percent(units)
