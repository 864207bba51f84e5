"""report.html in a real browser: it works by mouse, touch-sized screens and keyboard alone, without a network."""

import base64
import io
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evaluate.curves import gather_curves
from evaluate.report import ShownImage, Version, make_report
from evaluate.report_page import write_page
from evaluate.results import Evaluation, ImageResult
from evaluate.summary import summarise
from relic.bitstream.rdoq import RdoqSettings
from tests.evaluate.conftest import smooth_image

pytestmark = pytest.mark.commands


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
try:
    from playwright.sync_api import Page, sync_playwright
except ImportError:
    CHROMIUM = None


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium, or no playwright, to open the page in")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two codecs on four images, one of them with a name that is HTML."""
    rng = np.random.default_rng(0)
    labels, names = ("first", "second"), ("a", "b", "c", "<script>alert(1)<_script>&")
    originals = [smooth_image(200 + 20 * number, 180, number) for number in range(len(names))]
    decoded = {
        label: [np.clip(x + rng.integers(-noise, noise + 1, x.shape), 0, 255).astype(np.uint8) for x in originals]
        for label, noise in zip(labels, (8, 16), strict=True)
    }
    evaluations = []
    for label in labels:
        results = [
            ImageResult(
                name=name,
                width=x.shape[1],
                height=x.shape[0],
                psnr_db=10 * math.log10(255**2 / np.square(x.astype(float) - x_hat).mean()),
                ms_ssim=0.9,
                ms_ssim_db=10.0,
                bpp_estimated=0.5,
                bpp_real=0.51,
                file_bytes=1234,
                encode_ms=1.0,
                decode_ms=1.0,
            )
            for name, x, x_hat in zip(names, originals, decoded[label], strict=True)
        ]
        architecture = SimpleNamespace(replaced="none", name="bmshj2018_factorized", channels=(8, 12))
        known = {"label": label, "architecture": architecture, "runtime": "torch", "swap_init": "none", "qat": False}
        codec: Any = SimpleNamespace(**known, precision="float32")
        evaluations.append(Evaluation(codec, results, {}, {}, RdoqSettings()))
    summaries = [summarise(evaluation.results) for evaluation in evaluations]
    made = make_report(
        evaluations=evaluations,
        summaries=summaries,
        curves=gather_curves(evaluations, summaries, ["x", "y"]),
        source={"images": "images"},
        shown=[
            ShownImage(
                rank=f"{'worst' if number < 2 else 'best'} {number % 2 + 1}",
                name=names[number],
                width=x.shape[1],
                height=x.shape[0],
                original=data_uri(x),
                versions=[
                    Version(one.codec.label, data_uri(decoded[one.codec.label][number]), one.results[number])
                    for one in evaluations
                ],
                cut="",
            )
            for number, x in enumerate(originals)
        ],
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, made)
    return path


def data_uri(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_the_page_escapes_names_and_holds_every_image(report: Path) -> None:
    page = report.read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert page.count('<article class="viewer"') == 4 and page.count("data:image/png") == 12


@pytest.fixture
def open_page(browser: Any, report: Path) -> Iterator[Callable[..., "Page"]]:
    """A function that opens the report. The page must not log, fail, or request another file."""
    said: list[str] = []
    asked: list[str] = []

    def open_(**options: Any) -> "Page":
        page = browser.new_page(**options)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        result: Page = page
        return result

    yield open_
    assert said == []
    assert {url.split(":")[0] for url in asked} <= {"file", "data"} and asked.count(report.as_uri()) == 1


def divider_at(page: "Page") -> float:
    value: float = page.evaluate("parseFloat(document.querySelector('.stage').style.getPropertyValue('--at'))")
    return value


def test_the_divider_follows_the_mouse(open_page: Callable[..., "Page"]) -> None:
    page = open_page(viewport={"width": 1000, "height": 800})
    page.locator(".stage").first.scroll_into_view_if_needed()
    box = page.locator(".stage").first.bounding_box()
    assert box is not None
    assert divider_at(page) == 50
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 40, steps=5)
    assert divider_at(page) == pytest.approx(80, abs=1)
    page.mouse.up()
    page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + 40)
    assert divider_at(page) == pytest.approx(80, abs=1)
    line = page.locator(".line").first.bounding_box()
    assert line is not None
    assert line["x"] - box["x"] == pytest.approx(0.8 * box["width"], abs=4)


def test_the_keyboard_reaches_everything(open_page: Callable[..., "Page"]) -> None:
    page = open_page(viewport={"width": 1000, "height": 800})
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.className || document.activeElement.tagName"))
        if reached[-1] == "divider":
            break
    assert "BUTTON" in reached and reached[-1] == "divider"
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert divider_at(page) == 55
    page.keyboard.press("Home")
    assert divider_at(page) == 0
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator(".toggle").first.get_attribute("aria-pressed") == "true"


def test_columns_sort_both_ways(open_page: Callable[..., "Page"]) -> None:
    page = open_page()
    heading = page.locator("#summary th", has_text="PSNR dB")
    values = []
    for wanted in ("ascending", "descending"):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == wanted
        cells = page.locator("#summary tbody tr td:nth-child(2)")
        values.append([float(cells.nth(row).get_attribute("data-value") or "nan") for row in range(cells.count())])
    assert values[0] == sorted(values[0]) == values[1][::-1]
    assert values[0][0] != values[0][1]
    page.locator("#summary th button", has_text="codec").click()
    assert page.locator("#summary tbody th").all_inner_texts() == ["first", "second"]
    assert heading.get_attribute("aria-sort") == "none"


def test_the_difference_is_of_what_is_shown(open_page: Callable[..., "Page"]) -> None:
    page = open_page()
    viewer = page.locator(".viewer").first
    canvas = viewer.locator("canvas")
    assert not canvas.is_visible()
    viewer.locator(".toggle").click()
    canvas.wait_for(state="visible")
    compute = """(viewer) => {
        const canvas = viewer.querySelector('canvas');
        const read = (source) => {
            const own = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d');
            own.drawImage(source, 0, 0);
            return own.getImageData(0, 0, canvas.width, canvas.height).data;
        };
        const [before, after, shown] = ['.original', '.reconstruction', 'canvas'].map(
            (name) => read(viewer.querySelector(name)));
        return shown.every((value, place) => value === (
            place % 4 === 3 ? 255 : Math.min(255, 8 * Math.abs(before[place] - after[place]))
        )) && shown.some((value, place) => place % 4 !== 3 && value > 0);
    }"""
    element = viewer.element_handle()
    assert page.evaluate(compute, element)
    numbers = viewer.locator(".numbers:visible").inner_text()
    viewer.locator("select").select_option("second")
    page.wait_for_function("(viewer) => !viewer.querySelectorAll('.numbers')[1].hidden", arg=element)
    assert viewer.locator(".numbers:visible").inner_text() != numbers
    page.wait_for_timeout(200)  # the canvas is drawn after the other image has been decoded
    assert page.evaluate(compute, element)
    viewer.locator(".toggle").click()
    assert not canvas.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(open_page: Callable[..., "Page"], scheme: Any) -> None:
    page = open_page(viewport={"width": 375, "height": 700}, color_scheme=scheme, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(paper) > 3 * 128) == (scheme == "light")
    plots = page.locator(".plot:visible")
    assert plots.count() == 2
    assert page.locator(".viewer").count() == 4
    page.locator(".stage").nth(1).tap()
    assert "alert(1)" in page.inner_text("main")
