"""Processors by name: which integer instructions each has, and what this machine is.

    "vnni"  ->  {vnni, avx2}: products of uint8 and int8 are added in 32 bits
    "avx2"  ->  {avx2}: they are added in pairs in 16 bits, so weights must keep to 7 bits

A name that is not in the table is refused: nothing is guessed about a processor.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from onnxcomp.errors import ParameterError
from onnxcomp.graph.integers.style import QuantizationStyle

X86 = frozenset({"x86_64", "amd64", "i386", "i686", "x86"})


@dataclass(frozen=True)
class Processor:
    """A kind of processor.

    features: what it has for integer arithmetic: amx, vnni, avx512, avx2; i8mm, dotprod, neon.
    saturates: whether sums of two products of uint8 and int8 do not fit where it adds them.
    """

    name: str
    features: frozenset[str]
    saturates: bool = False


# Best first: the first whose features are all there is what a machine is taken for.
PROCESSORS: Mapping[str, Processor] = {
    each.name: each
    for each in (
        Processor("amx", frozenset({"amx", "vnni", "avx512", "avx2"})),
        Processor("vnni", frozenset({"vnni", "avx2"})),
        Processor("avx512", frozenset({"avx512", "avx2"}), saturates=True),
        Processor("avx2", frozenset({"avx2"}), saturates=True),
        Processor("neon-i8mm", frozenset({"i8mm", "dotprod", "neon"})),
        Processor("neon-dotprod", frozenset({"dotprod", "neon"})),
        Processor("neon", frozenset({"neon"})),
        Processor("generic", frozenset(), saturates=True),
    )
}
ALIASES: Mapping[str, str] = {
    "avx512-vnni": "vnni",
    "avx-vnni": "vnni",
    "cascadelake": "vnni",
    "icelake": "vnni",
    "zen4": "vnni",
    "skylake-avx512": "avx512",
    "haswell": "avx2",
    "sapphirerapids": "amx",
}
# A flag of /proc/cpuinfo -> the feature that it stands for.
FLAGS = {
    "avx512_vnni": "vnni",
    "avx_vnni": "vnni",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "avx512f": "avx512",
    "avx2": "avx2",
    "amx_int8": "amx",
}


def processor(name: str | None = None) -> Processor:
    """The processor called ``name``, or this machine's own; ParameterError for a name that is not known."""
    if name is None:
        return identify(processor_features(), platform.machine())
    wanted = name.lower()
    known = PROCESSORS.get(ALIASES.get(wanted, wanted))
    if known is None:
        names = ", ".join([*PROCESSORS, *ALIASES])
        raise ParameterError(f"target-cpu: must be one of {names}, got {name!r}")
    return known


def identify(features: frozenset[str], machine: str) -> Processor:
    """What a processor of these features is taken for; other machines than x86 and Arm have no saturating sums."""
    if machine.lower() in X86:
        fitting = (each for each in PROCESSORS.values() if each.features <= features)
        return next(fitting)
    named = (each for each in PROCESSORS.values() if "neon" in each.features and each.features <= features | {"neon"})
    return next(named)


@functools.cache
def processor_features() -> frozenset[str]:
    """What this machine's processor has for integer arithmetic."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        words = set(cpuinfo.read_text(errors="replace").split())
        return frozenset(name for flag, name in FLAGS.items() if flag in words)
    # Every Apple processor of the M line has the dot product instructions.
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    return frozenset({"dotprod", "neon"} if apple else ())


def fitted_to(style: QuantizationStyle, chosen: Processor) -> QuantizationStyle:
    """The style with weights of 7 bits where the processor's sums of two u8 x s8 products saturate."""
    return replace(style, reduce_range=chosen.saturates) if style.on_processor else style
