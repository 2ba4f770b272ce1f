"""The encodings of a model's weights in its metadata: JSON, packed by zlib, in base64."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping

from onnx import ModelProto

from onnxcomp.errors import ModelError
from onnxcomp.numerics.encodings.encoding import Encoding, encoding_from_dict

ENCODINGS_KEY = "onnxcomp.encodings"
AT_LEAST_BYTES = 2**24  # may be unpacked, however few bytes they are packed in
UNPACKED_RATIO = 50  # unpacked over packed bytes, above that: levels and scales come to less than ten


def take_encodings(proto: ModelProto, name: str) -> dict[str, Encoding]:
    """Take the stored encodings out of a model's metadata: weight key -> encoding.

    Raises ModelError, which names the model, where they are broken.
    """
    found: dict[str, Encoding] = {}
    kept = []
    for entry in proto.metadata_props:
        if entry.key != ENCODINGS_KEY:
            kept.append(entry)
            continue
        try:
            content = json.loads(_unpacked(base64.b64decode(entry.value)))
            found = {key: encoding_from_dict(each) for key, each in content.items()}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError, zlib.error) as error:
            raise ModelError(f"{name}: the stored encodings are broken: {error}.") from error
    if len(kept) != len(proto.metadata_props):
        entries = [(each.key, each.value) for each in kept]
        del proto.metadata_props[:]
        for key, value in entries:
            proto.metadata_props.add(key=key, value=value)
    return found


def with_encodings(proto: ModelProto, encodings: Mapping[str, Encoding]) -> ModelProto:
    """The model with its encodings in its metadata; the model itself where there are none."""
    if not encodings:
        return proto
    made = ModelProto()
    made.CopyFrom(proto)
    content = json.dumps({key: each.to_dict() for key, each in sorted(encodings.items())})
    made.metadata_props.add(key=ENCODINGS_KEY, value=base64.b64encode(zlib.compress(content.encode())).decode())
    return made


def _unpacked(packed: bytes) -> bytes:
    """What zlib packed. Raises ValueError where that is more than any text of numbers packs to so few bytes."""
    limit = AT_LEAST_BYTES + UNPACKED_RATIO * len(packed)
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(packed, limit)
    if unpacker.unconsumed_tail:
        raise ValueError(f"{len(packed):,} bytes unpack to more than {limit:,}")
    return content + unpacker.flush()
