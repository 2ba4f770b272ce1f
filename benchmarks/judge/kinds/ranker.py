"""Items are ranked for a reader; most of the rows of the items' table are rarely asked for.

Of five items one was taken: mean reciprocal rank, times 100.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.judge.catalogue import Array, Run

KIND = "ranker"
EXPORTER = "torch-dynamo"
ITEMS, SHELVES, TRAITS, TASTES, WIDTH, OFFERED = 1800, 30, 12, 6, 20, 5
STEP = 16


class _World:
    """A reader has tastes, of which traits tell; an item has a place among tastes, of which its shelf tells."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.shelf = rng.integers(0, SHELVES, ITEMS)
        self.places = 0.7 * rng.normal(0, 1, (SHELVES, TASTES))[self.shelf] + rng.normal(0, 0.9, (ITEMS, TASTES))
        self.tells = rng.normal(0, 0.6, (TASTES, TRAITS))
        asked = 1 / (np.arange(ITEMS) + 8) ** 0.9
        self.asked = asked / asked.sum()

    def made(self, rng: np.random.Generator, count: int) -> dict[str, Array]:
        """Traits of readers, items offered, and the number of the one that was taken."""
        tastes = rng.normal(0, 1, (count, TASTES))
        traits = np.tanh(tastes @ self.tells) + rng.normal(0, 0.1, (count, TRAITS))
        items = rng.choice(ITEMS, (count, OFFERED), p=self.asked)
        pull = np.einsum("nt,nit->ni", tastes, self.places[items]) + rng.gumbel(0, 0.7, (count, OFFERED))
        levels = np.clip(np.round(traits * STEP), -127, 127).astype(np.int8)
        return {"traits": levels, "items": items.astype(np.uint16), "taken": pull.argmax(axis=1).astype(np.uint8)}


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch
    from torch import nn

    from benchmarks.judge import training

    rng = training.start(seed)
    world = _World(rng)
    made = world.made(rng, 60000)

    class Ranker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items, self.shelves = nn.Embedding(ITEMS, WIDTH), nn.Embedding(SHELVES, 8)
            self.reader = nn.Sequential(nn.Linear(TRAITS, 48), nn.ReLU(), nn.Linear(48, WIDTH))
            self.judge = nn.Sequential(nn.Linear(2 * WIDTH + 8, 48), nn.ReLU(), nn.Linear(48, 1))
            nn.init.normal_(self.items.weight, 0, 0.2)

        def forward(self, traits: torch.Tensor, item: torch.Tensor, shelf: torch.Tensor) -> torch.Tensor:
            reader, item = self.reader(traits), self.items(item)
            both = torch.cat([reader * item, item, self.shelves(shelf)], dim=-1)
            return self.judge(both).squeeze(-1) + (reader * item).sum(dim=-1)

    model = Ranker()
    shelf = world.shelf[made["items"]]
    data = training.tensors(_as_traits(made["traits"]), made["items"], shelf, made["taken"])

    def loss(traits: torch.Tensor, items: torch.Tensor, shelf: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        scores = model(traits[:, None].expand(-1, OFFERED, -1), items, shelf)
        return nn.functional.cross_entropy(scores, taken)

    training.fit(model, loss, data, epochs=6, batch=200, rate=6e-3)
    batch = torch.export.Dim("batch")
    training.export_dynamo(
        model,
        (data[0][:3], data[1][:3, 0], data[2][:3, 0]),
        folder / "model.onnx",
        inputs=["traits", "item", "shelf"],
        outputs=["score"],
        shapes=({0: batch}, {0: batch}, {0: batch}),
    )
    calibration, test = world.made(rng, 320), world.made(rng, 3000)
    items = calibration["items"][:, 0].astype(np.int64)
    np.savez_compressed(
        folder / "calib.npz", traits=_as_traits(calibration["traits"]), item=items, shelf=world.shelf[items]
    )
    test["shelf"] = world.shelf[test["items"]].astype(np.uint8)
    np.savez_compressed(folder / "test.npz", allow_pickle=False, **test)


def _as_traits(levels: Array) -> Array:
    return np.asarray(levels.astype(np.float32) / STEP)


def units(run: Run, test: dict[str, Array]) -> Array:
    """(readers, 1): reciprocal rank of the item that was taken."""
    traits = np.repeat(_as_traits(test["traits"]), OFFERED, axis=0)
    items, shelf = (test[name].astype(np.int64).ravel() for name in ("items", "shelf"))
    scores = run({"traits": traits, "item": items, "shelf": shelf})["score"].reshape(-1, OFFERED)
    own = np.take_along_axis(scores, test["taken"][:, None].astype(np.int64), axis=1)
    above = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
    return np.asarray(1 / (1 + above[:, None]))


def score(units: Array) -> float:
    """Mean reciprocal rank, times 100."""
    return 100 * float(units.mean())
