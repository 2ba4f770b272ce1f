"""A training on disk, so that it goes on where it was: written whole or not at all, and only for what it belongs to."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import ParameterError
from onnxcomp.files import Transaction

Array = NDArray[Any]

ABOUT = "about"
WRITTEN_EVERY_S = 30.0


@dataclass(frozen=True)
class TrainingCheckpoint:
    """The file of one training. belongs_to: what it is of (model, data, options): another training's is refused."""

    path: Path
    belongs_to: Mapping[str, Any]

    def write(self, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Put a state in the place of the last one; whoever is killed meanwhile has that one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        about = json.dumps({"belongs_to": dict(self.belongs_to), "facts": dict(facts)})
        content = io.BytesIO()
        np.savez(content, **{ABOUT: np.frombuffer(about.encode(), np.uint8)}, **dict(arrays))  # type: ignore[arg-type]
        with Transaction() as outputs:
            outputs.write(self.path, [content.getbuffer()])
            outputs.commit()

    def read(self) -> tuple[dict[str, Any], dict[str, Array]] | None:
        """The last state; None where there is none yet. ParameterError for one that is not of this training."""
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
            about = json.loads(arrays.pop(ABOUT).tobytes())
            theirs, facts = dict(about["belongs_to"]), dict(about["facts"])
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
            raise ParameterError(
                f"checkpoint: {self.path} cannot be read ({type(error).__name__}). Remove it."
            ) from error
        mine = json.loads(json.dumps(dict(self.belongs_to)))
        other = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        if other:
            raise ParameterError(
                f"checkpoint: {self.path} is of a training with other {', '.join(other)}. "
                "Name another folder, or remove it."
            )
        return facts, arrays
