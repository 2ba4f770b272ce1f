"""The page: well-formed, in need of nothing, harmless whatever names hold, and with every weight on it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from pathlib import Path

import pytest

from onnxcomp import report
from onnxcomp.errors import ModelError, RecipeError
from onnxcomp.receipt import Alternative, Receipt, Tried, WeightAccount
from onnxcomp.report.facts import front
from onnxcomp.report.page import common_prefix, replay_command, tried
from onnxcomp.report.plain import plain
from tests.report.accounts import account, elements, named, old_account, text, tree

STYLE = Path(report.__file__).parent / "templates" / "style.css"
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "</style><style>@import url(//x)",
    "javascript:alert(1)",
    "\x1b[2J\x1b]0;gone\x07\x00\x9b31m",
    "\u202egnp.\u2066\ufeff\ud800\uffff",
    "&lt;b&gt; &amp; &#0;",
    "</script><!--<script>",
]


@pytest.fixture(scope="module")
def page() -> str:
    return report.render(account())


# --- a page by itself ---


@pytest.mark.parametrize("made", [account, old_account])
def test_the_page_is_well_formed_and_needs_nothing_else(made) -> None:
    page = report.render(made())
    root = tree(page)
    for each in root.iter():
        for attribute in ("src", "href", "action", "poster", "data", "{http://www.w3.org/1999/xlink}href"):
            assert (each.get(attribute) or "#").startswith("#"), f"{each.tag} leads to {each.get(attribute)}"
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page.replace("http://www.w3.org", "")), "no address"


def test_the_browser_is_told_to_fetch_nothing_and_to_run_only_the_page_s_own_script(page: str) -> None:
    root = tree(page)
    [policy] = [each.get("content") or "" for each in elements(root, "meta") if each.get("http-equiv")]
    [script] = ["".join(each.itertext()) for each in elements(root, "script")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_every_id_is_there_once_and_every_link_leads_to_one(page: str) -> None:
    root = tree(page)
    found = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(found) == len(set(found))
    assert {(each.get("href") or "")[1:] for each in elements(root, "a")} <= set(found)
    assert {word for each in root.iter() for word in (each.get("aria-labelledby") or "").split()} <= set(found)


# --- what it says ---


def test_it_says_what_came_of_the_run(page: str) -> None:
    said = text(tree(page))
    for words in (
        "net.onnx PASS", "12.5 kB → 2.1 kB", "5.95x smaller", "of 0.03 allowed", "31 of 32 samples",
        "y judged as classes", "1 ms → 0.5 ms", "2x faster", "at 1x3x8x8", "1 thread on cpu", "2x SLOWER",
        "2 k → 1 k", "ONNX Runtime 1.12+", "Some CPU", "2026-11-27 12:00:00 UTC", "a note",
    ):  # fmt: skip
        assert words in said, words


def test_every_weight_has_a_line_with_what_it_was_and_is(page: str) -> None:
    rows = {text(row).split()[0]: text(row) for row in elements(named(tree(page), "t-weights"), "tr")}
    assert {"conv.weight", "fc.weight", "bias", "lost", "made"} <= set(rows)
    assert "32×16×2×2 16 levels codebook, 4 bits 3.28 25% 8,192 840 9.75x smaller" in rows["conv.weight"]
    assert "64×10 cut to 32×10" in rows["fc.weight"]
    assert "64 –" in rows["lost"] and "gone" in rows["lost"]
    assert "– 32" in rows["made"]


def test_treemaps_have_what_the_tables_have(page: str) -> None:
    maps = [each for each in tree(page).iter() if (each.get("class") or "").split()[:1] == ["map"]]
    assert len(maps) == 2
    titles = [" ".join(each.get("title") or "" for each in made) for made in maps]
    assert "conv.weight: 8.19 kB → 840 B" in titles[0] and "lost" in titles[0]
    assert "fc.weight: 300 B, 7.5 bits a value" in titles[1] and "lost" not in titles[1]
    assert all("graph, names and small constants" in each for each in titles)
    assert all(each.get("role") == "img" and each.get("aria-label") for each in maps)


def test_sensitive_weights_come_first(page: str) -> None:
    section = text(named(tree(page), "sensitivity"))
    assert section.index("fc.weight") < section.index("conv.weight")


def test_each_weight_has_its_runners_up_with_their_prices(page: str) -> None:
    root = tree(page)
    [link] = [each for each in elements(root, "a") if text(each) == "conv.weight" and each.get("href") == "#w0"][:1]
    story = text(named(root, (link.get("href") or "")[1:]))
    for each in ("cluster-weights bits=3 600 0.01 0.012 too dear", "bits=4 800 0.002 0.002 chosen", "as it was 8,192"):
        assert each in story


def test_latency_and_operators_stand_side_by_side(page: str) -> None:
    root = tree(page)
    assert "Conv 1 ms 0.5 ms" in text(named(root, "latency"))
    assert "Together 1 ms 0.75 ms" in text(named(root, "latency"))
    graph = text(named(root, "graph"))
    assert "Pad 1 0 −1" in graph and "decoders of stored weights 0 3 +3" in graph
    assert "Pad no node of its name pad" in graph and "Gemm MatMul fc" in graph and "4 more nodes" in graph


def test_the_commands_are_there_to_be_copied(page: str) -> None:
    root = tree(page)
    assert text(named(root, "command")) == "onnxcomp optimize net.onnx"
    again = text(named(root, "replay"))
    assert again == (
        "onnxcomp optimize /models/net.onnx --replay net.opt.receipt.json --calib-data calib.npz -o net.opt.again.onnx"
    )
    copied = {each.get("data-copies") for each in elements(root, "button") if each.get("data-copies")}
    assert copied == {"command", "replay"}


def test_a_replay_that_draws_on_no_data_needs_none() -> None:
    receipt = account()
    receipt.applied[0].on_data = False
    receipt.source["path"] = "/my models/net.onnx"
    assert replay_command(receipt).startswith("onnxcomp optimize '/my models/net.onnx' --replay")
    assert "--calib-data" not in replay_command(receipt)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda each: each.missed.append("size: too many"), "PASS, GOAL MISSED"),
        (lambda each: each.verdict.update(passed=False), "FAIL"),
        (lambda each: each.verdict.update(verified=False, passed=True, divergence=None), "NOT JUDGED"),
        (lambda each: each.applied.clear(), "UNCHANGED"),
        (lambda each: each.data.update(random=True), "RUNS, accuracy not judged"),
        (lambda each: each.verdict.update(limit=1e30), "MEASURED, no limit"),
        (lambda each: each.steps.pop(1), "PASS, exact steps only"),
    ],
)
def test_what_came_of_it_is_said_in_the_headline(change, word: str) -> None:
    receipt = account()
    change(receipt)
    [header] = list(elements(tree(report.render(receipt)), "header"))
    [badge] = [each for each in header.iter() if (each.get("class") or "").startswith("badge")]
    assert text(badge) == word


@pytest.mark.parametrize(
    ("ratio", "noise", "words"),
    [(0.97, None, "unchanged"), (1.2, None, "unchanged"), (1.3, None, "1.3x SLOWER"), (1.3, 0.5, "unchanged")],
)
def test_loading_is_slower_only_beyond_its_noise(ratio: float, noise: float | None, words: str) -> None:
    receipt = account()
    receipt.measured |= {"load_s_ratio": ratio} | ({} if noise is None else {"load_s_noise": noise})
    [loading] = [each for each in front(receipt) if each.label == "Loading"]
    assert loading.remark == words


def test_what_was_tried_stands_beside_what_was_kept_the_fastest_first() -> None:
    receipt = old_account()
    receipt.steps[1].tried = [
        Tried("slow", "no faster", 10, 1.0, 0.1), Tried("idle", "nothing to do"), Tried("best", "kept", 10, 0.5, 0.1),
        Tried("fast", "over the limit", 9, 0.4, 0.2),
    ]  # fmt: skip
    assert [(each.name, time) for each, time in tried(receipt)] == [
        ("fast", 0.8), ("best", 1.0), ("slow", 2.0), ("idle", None)
    ]  # fmt: skip
    assert "fast 0.800x 0.2 9 over the limit best 1.000x" in text(tree(report.render(receipt)))


# --- older receipts ---


def test_an_old_receipt_gives_a_page_that_says_what_is_missing() -> None:
    said = text(tree(report.render(old_account())))
    for words in (
        "written by an older version", "holds no profile", "holds no outline", "holds no command",
        "holds no sensitivities", "conv.weight", "8,215", "fuse-pad", "cast-float16",
    ):  # fmt: skip
        assert words in said, words


def test_a_receipt_without_any_weight_gives_a_page() -> None:
    receipt = old_account()
    receipt.steps, receipt.measured, receipt.verdict = [], {}, {"passed": True, "samples": 0}
    said = text(tree(report.render(receipt)))
    assert "No step changed anything" in said and "not compared" in said


# --- names ---


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_only_names(name: str) -> None:
    receipt = account(first=name, second=f"{name} 2", node=name)
    receipt.command = receipt.recipe = receipt.target = receipt.notes[0] = name
    receipt.missed = [name]
    receipt.steps[1].rewrite = receipt.steps[1].reason = receipt.data["source"] = receipt.source["path"] = name
    receipt.versions[name] = receipt.machine["processor"] = receipt.result["path"] = name
    receipt.weights[name].alternatives = [Alternative(name, 5, 0.1, 0.1), *receipt.weights[name].alternatives]
    receipt.graphs.milliseconds[name] = [1.0, 2.0]
    receipt.graphs.operators[name] = [1, 2]
    receipt.verdict["outputs"] = {name: {"kind": name, "measure": name}}
    page = report.render(receipt, name=name)
    root, usual = tree(page), tree(report.render(account()))
    assert {each.tag for each in root.iter()} == {each.tag for each in usual.iter()}
    assert len(list(elements(root, "script"))) == len(list(elements(root, "style"))) == 1
    assert not [key for each in root.iter() for key in each.attrib if key.startswith("on")]
    assert " ".join(plain(name).split()) in text(root)
    page.encode()
    assert not UNSEEN_BUT_LINES.search(page)


UNSEEN_BUT_LINES = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def test_what_cannot_be_seen_is_written_out() -> None:
    assert plain("a\x1b[1m\u202eb") == "a\\x1b[1m\\u202eb"
    assert plain("naïve 重み /+:_") == "naïve 重み /+:_"


# --- files ---


def test_a_page_is_written_from_a_receipt_or_from_its_file(tmp_path: Path) -> None:
    source = tmp_path / "net.receipt.json"
    source.write_text(account().to_json())
    first = report.write(source, tmp_path / "first.html")
    second = report.write(account(), tmp_path / "second.html")
    assert first.read_bytes() == second.read_bytes()


def test_files_that_are_in_the_way_are_refused(tmp_path: Path) -> None:
    source, page = tmp_path / "net.receipt.json", tmp_path / "page.html"
    source.write_text(account().to_json())
    page.write_text("mine")
    with pytest.raises(ModelError, match="exists already"):
        report.write(source, page)
    with pytest.raises(ModelError, match="input"):
        report.write(source, source, force=True)
    with pytest.raises(RecipeError, match="not a receipt"):
        report.write(page, tmp_path / "other.html")
    assert page.read_text() == "mine" and not (tmp_path / "other.html").exists()
    report.write(source, page, force=True)
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    "tampering",
    [
        {"verdict": {"passed": True, "samples": 3, "divergence": "far"}},
        {"measured": {"latency_ms_ratio": 0.5}},
        {"graphs": {"operators": {"Conv": [1]}}},
        {"graphs": {"milliseconds": {"Conv": []}}},
        {"weights": {"w": {"kind": "conv", "chosen": 5, "alternatives": []}}},
        {"machine": {"memory_bytes": "much"}},
    ],
)
def test_a_receipt_with_what_no_run_writes_is_refused_in_a_line(tampering: dict[str, object], tmp_path: Path) -> None:
    source = tmp_path / "net.receipt.json"
    source.write_text(json.dumps(json.loads(account().to_json()) | tampering))
    with pytest.raises(RecipeError, match="holds what no run writes"):
        report.write(source, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_figures_that_are_no_numbers_are_shown_as_such() -> None:
    receipt = account()
    receipt.verdict |= {"divergence": float("inf"), "passed": False, "interval": [float("nan"), float("inf")]}
    receipt.steps[1].divergence, receipt.steps[1].interval = float("nan"), (0.0, float("inf"))
    said = text(tree(report.render(receipt)))
    assert "FAIL" in said and "inf of 0.03 allowed" in said


def test_a_receipt_of_many_weights_is_a_page_of_as_many_lines() -> None:
    receipt = account()
    receipt.weights = {f"blocks.{n}.weight": WeightAccount("conv", [n], 4 * n, [n], n) for n in range(1, 301)}
    page = report.render(Receipt(**{**receipt.__dict__, "steps": []}))
    assert len(list(elements(named(tree(page), "t-weights"), "tr"))) == 301
    assert len(page) < 1e6


def test_the_receipt_of_the_page_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(account().to_json())
    assert Receipt.read(path) == account()
    assert max(map(len, path.read_text().splitlines())) < 400, "lines that a person can read"
    assert json.loads(path.read_text())["weights"]["bias"]["kind"] == "vector"


# --- what eyes need ---


def luminance(color: str) -> float:
    """Relative luminance by WCAG 2.2."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def schemes() -> list[dict[str, str]]:
    """The colors by name: in the light, in the dark, on paper."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)
    found = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+)", each)) for each in blocks]
    return [{name: v if len(v) == 7 else "#" + "".join(c * 2 for c in v[1:]) for name, v in s.items()} for s in found]


def test_text_can_be_read_in_the_light_in_the_dark_and_on_paper() -> None:
    assert len(schemes()) == 3
    for colors in schemes():
        texts, grounds = ("ink", "soft", "accent", "good", "bad"), ("paper", "panel")
        pairs = [*itertools.product(texts, grounds), ("good", "good-ground"), ("bad", "bad-ground")]
        pairs += [("ink", each) for each in ("good-ground", "bad-ground", "tint", "cell", "ground")]
        low = {pair: round(contrast(*(colors[each] for each in pair)), 2) for pair in pairs}
        assert min(low.values()) >= 4.5, {pair: value for pair, value in low.items() if value < 4.5}
        assert contrast(colors["after"], colors["ground"]) >= 3, "bars"


def test_tables_have_headings_and_what_scrolls_can_be_reached(page: str) -> None:
    root = tree(page)
    for table in elements(root, "table"):
        assert list(elements(table, "th")) and all(each.get("scope") for each in elements(table, "th"))
    for region in (each for each in root.iter() if each.get("class") == "scroll"):
        assert region.get("tabindex") == "0" and (region.get("aria-label") or region.get("aria-labelledby"))
    for drawn in elements(root, "svg"):
        assert drawn.get("aria-label")
    assert [each.get("lang") for each in elements(root, "html")] == ["en"]


@pytest.mark.parametrize(
    ("names", "shared"),
    [
        (["model/a/w", "model/b/w"], "model/"),
        (["onnx::Conv_1", "onnx::Conv_22"], "onnx::"),
        (["5.weight", "5.bias"], "5."),
        (["abc", "abd"], ""),
        (["only/one"], ""),
        ([], ""),
    ],
)
def test_what_all_names_begin_with_is_left_out_on_maps(names: list[str], shared: str) -> None:
    assert common_prefix(names) == shared
