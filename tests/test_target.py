"""onnxcomp.target: names, limits and styles."""

import pytest

from onnxcomp.errors import ParameterError, TargetError
from onnxcomp.runtime import available_providers, known_providers
from onnxcomp.target import PROVIDERS, VERSIONS, Target, cpu_style, oldest_ort, supported


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_accepts_short_and_full_names(name: str) -> None:
    target = Target.of(name, threads=2)
    assert (target.name, target.provider, target.threads) == ("cpu", "CPUExecutionProvider", 2)


@pytest.mark.parametrize("name", ["tensorrt", "NoSuchExecutionProvider"])
def test_absent_provider_lists_the_installed_ones(name: str) -> None:
    with pytest.raises(TargetError, match=rf"'{name}' is not installed; installed are: .*cpu"):
        Target.of(name)


def test_every_provider_of_this_onnxruntime_has_a_short_name() -> None:
    named = {provider for provider, _ in PROVIDERS.values()}
    assert set(available_providers()) <= named
    # VSINPU stands alone in its boards' own builds and is taken by its full name.
    assert set(known_providers()) - named <= {"VSINPUExecutionProvider"}


def test_asks_the_installed_version_what_it_loads() -> None:
    opset, ir = supported()
    assert opset >= 23 and ir >= 11
    assert Target.of("cpu").supported_opset == opset
    assert Target.of("cpu").supported_ir == ir


@pytest.mark.parametrize(
    ("version", "limits"), [((1, 0), (11, 6)), ((1, 13), (17, 8)), ((1, 20), (21, 10)), ((1, 99), (25, 13))]
)
def test_older_versions_bound_opset_and_ir(version: tuple[int, int], limits: tuple[int, int]) -> None:
    target = Target.of("cpu", min_ort=version)
    assert (target.supported_opset, target.supported_ir) == limits
    if version < (1, 99):
        assert oldest_ort(opset=limits[0], ir=limits[1]) <= version  # type: ignore[operator]


def test_version_table_never_falls() -> None:
    rows = list(VERSIONS.items())
    assert rows == sorted(rows)
    assert [limits[1] for _, limits in rows] == sorted(limits[1] for _, limits in rows)


def test_refuses_a_version_before_the_first() -> None:
    with pytest.raises(ParameterError, match="min-ort"):
        supported((0, 5))


@pytest.mark.parametrize(
    ("features", "machine", "reduced"),
    [({"avx2"}, "x86_64", True), ({"avx2", "vnni"}, "x86_64", False), (set(), "aarch64", False)],
)
def test_weights_keep_to_seven_bits_where_sums_saturate(
    features: set[str], machine: str, reduced: bool
) -> None:
    assert cpu_style(frozenset(features), machine).reduce_range is reduced
