"""The benchmark of what a run costs: its models are what they are called, its arithmetic is right."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks import cost, synthetic
from benchmarks.cost import Job, Row, Source, growth, ratios, regressions
from benchmarks.processes import Cost, deployable_bytes, measured, own_bytes

SMALL = ("t1", "c1", "g500", "w3000")


@pytest.mark.parametrize("name", SMALL)
def test_models_are_valid_and_tell_samples_apart(name: str) -> None:
    made = synthetic.SYNTHETIC[name]
    model = synthetic.build(made, synthetic.Network())
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, made.inputs(16))
    assert found.shape == (16, made.width) and np.isfinite(found).all()
    assert found.std(0).mean() > 0.05 * found.std()


@pytest.mark.parametrize(("name", "parameters"), [("t1", 1e6), ("t10", 1e7), ("c1", 1e6), ("c10", 1e7)])
def test_parameters_are_those_of_the_name(name: str, parameters: float) -> None:
    network = synthetic.Network()
    model = synthetic.build(synthetic.SYNTHETIC[name], network)
    counted = sum(int(np.prod(each.dims)) for each in model.graph.initializer)
    assert network.parameters == counted == pytest.approx(parameters, rel=0.08)


def test_a_graph_of_nodes_has_that_many_and_a_tenth_are_products() -> None:
    model = synthetic.build(synthetic.SYNTHETIC["g500"], synthetic.Network())
    kinds = [each.op_type for each in model.graph.node]
    assert len(kinds) == 501 and kinds.count("MatMul") == 50  # and the node that names the output


def test_many_weights_are_many() -> None:
    model = synthetic.build(synthetic.SYNTHETIC["w3000"], synthetic.Network())
    assert len(model.graph.initializer) == 3000
    assert sum(len(each.raw_data) for each in model.graph.initializer) == pytest.approx(1e6, rel=0.05)


def test_the_same_model_whether_its_data_lie_outside_or_not(tmp_path: Path) -> None:
    made = synthetic.SYNTHETIC["t1"]
    synthetic.write_model(made, tmp_path / "inside.onnx")
    synthetic.write_model(replace(made, outside=True), tmp_path / "outside.onnx")
    inside, outside = (onnx.load(tmp_path / f"{name}.onnx") for name in ("inside", "outside"))
    for one, other in zip(inside.graph.initializer, outside.graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other))
    ort.InferenceSession(tmp_path / "outside.onnx")  # which infers no shapes from tensors in another file
    assert deployable_bytes(tmp_path / "outside.onnx") > (tmp_path / "outside.onnx.data").stat().st_size > 0


def row(size: int = 1, family: str = "t", **figures: float) -> Row:
    given = {"cpu_s": 10.0, "peak_mb": 200.0, "tree_mb": 200.0, "scratch_mb": 50.0, **figures}
    output = int(given.pop("output_bytes", 1000))
    return Row(f"t{size}", "onnxcomp small", True, None, "", family, size, 2000, output, cost=Cost(**given))


def test_growth_is_the_slope_between_logarithms() -> None:
    one, two = row(1, cpu_s=10, peak_mb=cost.LIBRARIES_MB + 10), row(100, cpu_s=1000, peak_mb=cost.LIBRARIES_MB + 100)
    three = row(1000, cpu_s=1000, scratch_mb=0)
    other = row(1000, family="", cpu_s=7)
    (first, _, slow), (second, last, none) = growth([three, two, other, one])
    assert (first, second, last) == (one, two, three)
    assert slow["cpu_s"] == pytest.approx(1.0) and slow["peak_mb"] == pytest.approx(0.5)
    assert slow["scratch_mb"] == pytest.approx(0.0)
    assert none["cpu_s"] == pytest.approx(0.0) and none["scratch_mb"] is None


def test_growth_leaves_out_what_was_stopped() -> None:
    stopped = row(10)
    stopped.cost.stopped = True
    assert growth([row(1), stopped]) == []


def test_small_differences_are_none() -> None:
    assert ratios(row(cpu_s=11.9), row(cpu_s=10))["cpu_s"] == 1.0
    assert ratios(row(cpu_s=15), row(cpu_s=10))["cpu_s"] == 1.5
    assert ratios(row(output_bytes=1001), row())["output_bytes"] == pytest.approx(1.001)


@pytest.mark.parametrize(
    ("now", "worse"),
    [
        ({"cpu_s": 12.4}, []),
        ({"cpu_s": 12.6}, ["cpu_s"]),
        ({"scratch_mb": 64.0, "peak_mb": 260.0}, ["peak_mb", "scratch_mb"]),
        ({"output_bytes": 1019}, []),
        ({"output_bytes": 1021}, ["output_bytes"]),
        ({"cpu_s": 1.0, "output_bytes": 100}, []),
    ],
)
def test_worse_is_beyond_the_tolerance(now: dict[str, float], worse: list[str]) -> None:
    lines = regressions(row(**now), row(), 0.25)
    assert [line.split(": ")[1].split()[0] for line in lines] == worse


def test_a_job_that_fails_now_is_worse_and_one_that_failed_before_no_measure() -> None:
    failed = row()
    failed.cost.failure = "no room"
    assert regressions(failed, row(), 0.25) == ["t1 onnxcomp small: fails: no room, which it was not"]
    assert regressions(row(cpu_s=99), failed, 0.25) == []


def test_figures_come_back_from_their_file(tmp_path: Path) -> None:
    mine, other = row(1, cpu_s=3), row(1)
    other.revision = "0123abcd"
    cost.write(tmp_path / "figures.json", [mine, other], {})
    assert cost.read(tmp_path / "figures.json") == {mine.key: mine}


def test_command_lines() -> None:
    source = Source("m", Path("m.onnx"), Path("c.npz"))
    made = Job(source, "onnxcomp small", True, 2).command("python", Path("o.onnx"))
    assert " ".join(made) == (
        "python -P -m onnxcomp optimize --recipe small m.onnx -o o.onnx -q --calib-data c.npz --jobs 2"
    )
    made = Job(source, "onnxcomp run:cluster-weights", False).command("python", Path("o.onnx"))
    assert " ".join(made) == "python -P -m onnxcomp run cluster-weights m.onnx -o o.onnx -q"


def test_bytes_of_links_that_lead_elsewhere_are_not_counted(tmp_path: Path) -> None:
    inside, outside = tmp_path / "scratch", tmp_path / "outside"
    inside.mkdir()
    outside.write_bytes(bytes(1000))
    os.link(outside, inside / "link")
    (inside / "own").write_bytes(bytes(10))
    os.link(inside / "own", inside / "own again")
    assert own_bytes(inside) == 10


def test_a_failure_is_the_last_line_that_was_printed(tmp_path: Path) -> None:
    made = measured([sys.executable, "-c", "print('one', flush=True); raise SystemExit('no such thing')"], tmp_path)
    assert (made.failure, made.stopped) == ("no such thing", False)
    assert list(tmp_path.iterdir()) == []


def test_what_takes_too_long_is_stopped(tmp_path: Path) -> None:
    assert measured([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path, limit_s=0.0).stopped
