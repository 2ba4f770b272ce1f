"""onnxcomp.target: names, limits and styles."""

import pytest

from onnxcomp.errors import ParameterError, TargetError
from onnxcomp.runtime import available_providers, known_providers
from onnxcomp.target import (
    ALIASES,
    PROCESSORS,
    PROVIDERS,
    STYLES,
    VERSIONS,
    Target,
    identify,
    oldest_ort,
    processor,
    supported,
)
from onnxcomp.target.processors import fitted_to
from onnxcomp.target.short_floats import COMPUTED, computes_in
from tests.graphs.running import ORT


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_accepts_short_and_full_names(name: str) -> None:
    target = Target.of(name, threads=2)
    assert (target.name, target.provider, target.threads) == ("cpu", "CPUExecutionProvider", 2)


@pytest.mark.parametrize("name", ["tensorrt", "NoSuchExecutionProvider"])
def test_absent_provider_lists_the_installed_ones(name: str) -> None:
    with pytest.raises(TargetError, match=rf"'{name}' is not installed; installed are: .*cpu"):
        Target.of(name)


def test_every_provider_of_this_onnxruntime_has_a_short_name() -> None:
    named = set(PROVIDERS.values())
    assert STYLES.keys() == PROVIDERS.keys()
    assert set(available_providers()) <= named
    # VSINPU stands alone in its boards' own builds and is taken by its full name.
    assert set(known_providers()) - named <= {"VSINPUExecutionProvider"}


def test_asks_the_installed_version_what_it_loads() -> None:
    opset, ir = supported()
    known = supported(ORT)
    assert opset >= known[0] and ir >= known[1], "the table promises more than this version loads"
    assert Target.of("cpu").supported_opset == opset
    assert Target.of("cpu").supported_ir == ir


@pytest.mark.parametrize(
    ("version", "limits"),
    [((1, 0), (11, 6)), ((1, 13), (17, 8)), ((1, 20), (21, 10)), ((1, 31), (26, 13)), ((1, 99), (28, 14))],
)
def test_older_versions_bound_opset_and_ir(version: tuple[int, int], limits: tuple[int, int]) -> None:
    target = Target.of("cpu", min_ort=version)
    assert (target.supported_opset, target.supported_ir) == limits
    assert oldest_ort(opset=limits[0], ir=limits[1]) <= version  # type: ignore[operator]


def test_version_table_never_falls() -> None:
    rows = list(VERSIONS.items())
    assert rows == sorted(rows)
    assert [limits[1] for _, limits in rows] == sorted(limits[1] for _, limits in rows)


def test_refuses_a_version_before_the_first() -> None:
    with pytest.raises(ParameterError, match="min-ort"):
        supported((0, 5))


@pytest.mark.parametrize(
    ("features", "machine", "name", "reduced"),
    [
        ({"avx2"}, "x86_64", "avx2", True),
        ({"avx2", "avx512"}, "AMD64", "avx512", True),
        ({"avx2", "vnni"}, "x86_64", "vnni", False),
        ({"avx2", "vnni", "avx512", "amx"}, "x86_64", "amx", False),
        (set(), "x86_64", "generic", True),
        (set(), "aarch64", "neon", False),
        ({"neon", "dotprod"}, "arm64", "neon-dotprod", False),
        ({"neon", "dotprod", "i8mm"}, "aarch64", "neon-i8mm", False),
    ],
)
def test_weights_keep_to_seven_bits_where_sums_saturate(
    features: set[str], machine: str, name: str, reduced: bool
) -> None:
    found = identify(frozenset(features), machine)
    assert found.name == name
    assert fitted_to(STYLES["cpu"], found).reduce_range is reduced
    assert fitted_to(STYLES["openvino"], found).reduce_range is reduced
    assert fitted_to(STYLES["tensorrt"], found) == STYLES["tensorrt"]


def test_a_processor_can_be_named() -> None:
    for name in (*PROCESSORS, *ALIASES, "Haswell"):
        target = Target.of("cpu", cpu=name)
        assert target.cpu == processor(name).name
        assert target.style.reduce_range is processor(name).saturates
    with pytest.raises(ParameterError, match=r"target-cpu: must be one of amx, .*haswell.*, got 'z80'"):
        Target.of("cpu", cpu="z80")


def test_every_style_names_operators_and_types_of_onnx() -> None:
    import onnx

    for name, style in STYLES.items():
        named = style.computes | style.between | style.moves | style.float_results | style.channelled
        assert all(onnx.defs.has(each) for each in named), name
        assert not style.computes & (style.between | style.moves) and not style.between & style.moves, name
        assert style.activation in ("uint8", "int8") and style.weight in ("uint8", "int8"), name
        assert bool(style.computes) is style.fast_integer, name
        assert not style.source or style.source.startswith("https://"), name


def test_short_floats_are_computed_by_known_providers_only() -> None:
    assert PROVIDERS.keys() >= COMPUTED.keys()
    assert computes_in("cuda", "bfloat16") and computes_in("dml", "float16")
    assert not computes_in("dml", "bfloat16")
    assert not any(computes_in(name, "float16") for name in ("cpu", "coreml", "SomeExecutionProvider"))
