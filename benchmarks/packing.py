"""What models take packed, beside general compressors and coders of neural networks on the same files, in one run.

    python -m benchmarks.packing MODEL.onnx ... [--no-peers]

For each model: bytes as they are; packed by onnxcomp; by xz -9e, brotli -q 11, zstd --ultra -22 and OpenZL of the whole
file; by NNCodec 2 of its tensors (it rounds floats: its least step is used). Then the ratio to the best of xz, brotli
and zstd, CPU seconds of packing and of unpacking, and MB/s of the file and of float32 that come out. A peer that is not
installed says so: `pip install 'onnxcomp[bench]'`, and for NNCodec, which brings torch, `pip install nncodec`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import lzma
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.model import load
from onnxcomp.packing.packer import pack
from onnxcomp.packing.unpacker import unpack

BROTLI_WINDOW_BITS = (10, 24)  # what brotli's Python package takes; --large_window has up to 30
ZSTD_WINDOW_BITS = 27
MB = 1e6

Compressor = Callable[[bytes], bytes]


def xz(content: bytes) -> bytes:
    """xz -9e."""
    return lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)


def brotli(content: bytes) -> bytes:
    """brotli -q 11, the largest window that the package has."""
    low, high = BROTLI_WINDOW_BITS
    window = min(high, max(low, len(content).bit_length()))
    found: bytes = importlib.import_module("brotli").compress(content, quality=11, lgwin=window)
    return found


def zstd(content: bytes) -> bytes:
    """zstd --ultra -22 --long=27."""
    zstandard = importlib.import_module("zstandard")
    parameters = zstandard.ZstdCompressionParameters.from_level(
        22, window_log=min(ZSTD_WINDOW_BITS, max(10, len(content).bit_length())), enable_ldm=True
    )
    found: bytes = zstandard.ZstdCompressor(compression_params=parameters).compress(content)
    return found


def openzl(content: bytes) -> bytes:
    """OpenZL's generic graph."""
    library = importlib.import_module("openzl.ext")
    compressor = library.Compressor()
    compressor.select_starting_graph(library.graphs.Compress().parameterize(compressor))
    context = library.CCtx()
    context.ref_compressor(compressor)
    context.set_parameter(library.CParam.FormatVersion, library.MAX_FORMAT_VERSION)
    found: bytes = context.compress([library.Input(library.Type.Serial, np.frombuffer(content, np.uint8))])
    return found


def nncodec(content: bytes) -> bytes:
    """NNCodec on the tensors of the main graph, the float ones rounded by nothing."""
    nnc = importlib.import_module("nncodec.nn")
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load_from_string(content).graph.initializer}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        held = {name: values for name, values in arrays.items() if values.dtype.kind in "iuf" and values.size > 1}
        found: Any = nnc.encode(held, {"qp": -75, "results": folder, "use_dq": False})
    return bytes(found if isinstance(found, (bytes, bytearray)) else found[0])


PEERS: dict[str, Compressor] = {"xz": xz, "brotli": brotli, "zstd": zstd, "openzl": openzl, "nncodec": nncodec}
GENERAL = ("xz", "brotli", "zstd")


def float_bytes(path: Path) -> int:
    """Bytes of the model's float constants, as float32, those behind decoders too."""
    constants = constants_by_key(open_plain(load(path))).values()
    return sum(4 * each.size for each in constants if np.dtype(each.dtype).kind == "f" or "float" in str(each.dtype))


def measured(path: Path, folder: Path) -> tuple[int, float, float]:
    """Packed bytes, and CPU seconds of packing and of unpacking; what comes out is compared."""
    start = time.process_time()
    made = pack(path, folder / "m.onnxp", force=True)
    middle = time.process_time()
    back = unpack(made.path, folder / path.name, force=True)
    end = time.process_time()
    assert back.paths[0].read_bytes() == path.read_bytes()
    return made.size_bytes, middle - start, end - middle


def peer_bytes(content: bytes) -> dict[str, int | str]:
    """What each peer makes of the content, or why it makes nothing."""
    found: dict[str, int | str] = {}
    for name, compress in PEERS.items():
        try:
            found[name] = len(compress(content))
        except ModuleNotFoundError:
            found[name] = "not installed"
        except (AttributeError, TypeError, ValueError, RuntimeError, KeyError) as error:
            found[name] = f"fails: {type(error).__name__}"
    return found


def report(path: Path, *, with_peers: bool) -> None:
    """A few lines on one model."""
    content = path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        size, packing, unpacking = measured(path, Path(folder))
    print(f"{path.name}: {len(content):,} bytes, packed {size:,} ({size / len(content):.4f})")
    peers = peer_bytes(content) if with_peers else {}
    for name, result in peers.items():
        shown = f"{result:,} bytes, packed is {size / result:.4f} of it" if isinstance(result, int) else result
        print(f"  {name:8} {shown}")
    general = [result for name in GENERAL if isinstance(result := peers.get(name), int)]
    if general:
        print(f"  of the best of {', '.join(GENERAL)}: {size / min(general):.4f}")
    floats = float_bytes(path)
    print(
        f"  packs in {packing:.2f} s ({len(content) / MB / packing:.1f} MB/s), unpacks in {unpacking:.2f} s "
        f"({len(content) / MB / unpacking:.1f} MB/s of the file, {floats / MB / unpacking:.1f} MB/s of float32)",
        flush=True,
    )


def main() -> None:
    """Report on every model named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--no-peers", action="store_true", help="onnxcomp alone")
    given = parser.parse_args()
    for path in given.models:
        report(path, with_peers=not given.no_peers)


if __name__ == "__main__":
    main()
