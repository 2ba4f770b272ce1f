"""What a run would do: every step with all that is inside it."""

from __future__ import annotations

import pytest

from onnxcomp.cli.printing.receipts import show_plan
from onnxcomp.model import load
from onnxcomp.pipeline.reports.plan import Plan, PlannedStep, plan
from onnxcomp.recipe import Recipe
from tests.pipeline.chain import chain

RECIPE: list[dict[str, object]] = [
    {"choose": ["quantize-weights", "cluster-weights"], "then": ["match-outputs"]},
    {
        "sequence": [
            {
                "try": [{"pass": "fuse-pad"}, [{"pass": "fuse-pad"}, {"pass": "quantize-dynamic"}]],
                "otherwise": [[{"pass": "fuse-pad"}, {"pass": "quantize-static"}]],
            },
            {"repeat": [{"pass": "cast-float16"}], "rounds": 2},
        ]
    },
    {"pass": "quantize-weights", "bits": "auto", "algorithm": "nearest"},
]


@pytest.fixture
def planned() -> Plan:
    steps = [Recipe.from_dict({"step": [each]}, name="r").steps[0] for each in RECIPE]
    return plan(load(chain()), recipe=Recipe("r", tuple(steps)))


def outline(steps: tuple[PlannedStep, ...]) -> list[object]:
    return [[f"{each.role}: {each.rewrite}".removeprefix(": "), *outline(each.inner)] for each in steps]


def test_steps_are_shown_with_all_that_is_inside(planned: Plan) -> None:
    assert outline(planned.steps) == [
        [
            "quantize-weights | cluster-weights",
            ["choose: quantize-weights"],
            ["choose: cluster-weights"],
            ["then: match-outputs"],
        ],
        [
            "fastest of 2 + 2 rounds of cast-float16",
            [
                "in turn: fastest of 2",
                ["try: fuse-pad"],
                ["try: fuse-pad + quantize-dynamic", ["in turn: fuse-pad"], ["in turn: quantize-dynamic"]],
                ["otherwise: fuse-pad + quantize-static", ["in turn: fuse-pad"], ["in turn: quantize-static"]],
            ],
            ["in turn: 2 rounds of cast-float16", ["each round: cast-float16"]],
        ],
        ["quantize-weights"],
    ]


def test_what_waits_for_data_is_said_at_its_place(planned: Plan) -> None:
    def left_out(steps: tuple[PlannedStep, ...]) -> set[str]:
        own = {each.rewrite for each in steps if each.decision.startswith("left out")}
        return own.union(*(left_out(each.inner) for each in steps))

    assert planned.random and left_out(planned.steps) == {
        "match-outputs",
        "fuse-pad + quantize-static",
        "fuse-pad",
        "quantize-static",
    }


def test_a_chosen_strength_stands_beside_the_fields_that_are_set(planned: Plan) -> None:
    last = planned.steps[-1]
    assert {name: last.parameters[name] for name in last.chosen} == {"algorithm": "nearest", "bits": "auto"}


def test_the_table_indents_what_is_inside(planned: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(planned, verbose=False)
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("    otherwise: fuse-pad + quantize-static") and "no calibration data" in line for line in lines
    )
    assert any(line.startswith("  then: match-outputs") for line in lines)
