"""The page in a real browser: nothing is fetched, keys and buttons work, in the light, in the dark and on paper.

Skipped where there is no Chromium, or no playwright to drive it (`make test-browser`).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxcomp import report
from tests.report.accounts import account

api = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium")
ALONE = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=ALONE)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("page") / "page.html"
    hostile = account(first="<img src=x onerror=document.title='harmed'>", second="</script><script>alert(1)</script>")
    return report.write(hostile, path).as_uri()


class Visit:
    """The page in a tab, and all that it asked for or complained of."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Any]:
    made: list[Visit] = []

    def go(**options: Any) -> Visit:
        made.append(Visit(browser, address, **options))
        return made[-1]

    yield go
    for each in made:
        each.context.close()


def test_it_fetches_nothing_and_names_do_nothing(visit: Any, address: str) -> None:
    seen = visit()
    assert seen.asked == [address] and seen.said == []
    assert "harmed" not in seen.page.title()
    assert seen.page.locator("img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_scheme_of_the_reader(visit: Any, scheme: str) -> None:
    page = visit(color_scheme=scheme).page
    styles = "getComputedStyle(document.body)"
    colors = page.evaluate(f"[{styles}.backgroundColor, {styles}.color]")
    ground, ink = (sum(map(int, re.findall(r"\d+", each))) for each in colors)
    assert (ground > ink) is (scheme == "light")


@pytest.mark.parametrize("width", [360, 1280])
def test_it_is_never_wider_than_the_window(visit: Any, width: int) -> None:
    page = visit(viewport={"width": width, "height": 800}).page
    page.get_by_role("button", name="Unfold all").click()
    assert page.locator("details.weight[open]").count() == page.locator("details.weight").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_filter_hides_the_weights_that_it_does_not_name(visit: Any) -> None:
    page = visit().page
    rows = page.locator("#t-weights tbody tr")
    assert rows.count() == 5
    page.get_by_label("Show weights").fill("LOST")
    assert [each.is_visible() for each in rows.all()].count(True) == 1
    page.get_by_label("Show weights").fill("")
    assert all(each.is_visible() for each in rows.all())


def test_weights_are_sorted_by_a_press_of_their_heading(visit: Any) -> None:
    page = visit().page
    cells = page.locator("#t-weights tbody tr td:nth-of-type(7)")  # bytes after
    heading = page.get_by_role("columnheader", name="After").get_by_role("button")
    heading.press("Enter")
    assert cells.all_inner_texts() == ["840", "300", "128", "32", "–"]
    heading.press("Enter")
    assert cells.all_inner_texts() == ["–", "32", "128", "300", "840"]
    assert page.locator("#t-weights th[aria-sort=ascending]").inner_text().startswith("After")


def test_a_link_to_a_weight_unfolds_its_story_by_keys_alone(visit: Any) -> None:
    page = visit().page
    link = page.locator("#t-weights a").first
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#w0').open")
    assert page.locator("#w0").get_by_text("What it could have become").first.is_visible()


def test_a_command_is_copied(visit: Any) -> None:
    seen = visit()
    seen.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = seen.page.locator("button[data-copies=command]")
    button.click()
    seen.page.wait_for_function("document.querySelector('button[data-copies=command]').textContent === 'Copied'")
    assert seen.page.evaluate("navigator.clipboard.readText()") == "onnxcomp optimize net.onnx"


def test_without_scripts_all_is_there_but_the_buttons(visit: Any) -> None:
    page = visit(java_script_enabled=False).page
    assert page.locator("#t-weights tbody tr").count() == 5
    assert not any(each.is_visible() for each in page.locator("button").all())


def test_it_prints(visit: Any) -> None:
    page = visit(color_scheme="dark").page
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
