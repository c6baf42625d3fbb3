"""The pages in a real browser: from file://, with no error and no request to anywhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from debian import install
from study import HOSTILE, build, make_results

from brainlm.cohort.recordings import Entry
from brainlm.config import Cohort
from brainlm.preprocess.chunk import _excluded

_CONTRAST = """() => {
  const channel = (v) => (v /= 255, v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (c) => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (node) => {
    if (node.closest('[id*="-on-image-"]')) return [0, 0, 0];
    for (; node; node = node.parentElement) {
      const c = parse(getComputedStyle(node).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("p, li, td, th, a, dt, strong, caption, text")) {
    const style = getComputedStyle(node);
    const ink = node.tagName === "text" ? style.fill : style.color;
    const pair = [light(parse(ink)), light(behind(node))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) found.push([node.tagName, node.textContent.slice(0, 30), ratio]);
  }
  return found;
}"""

_WIDER_THAN = """(edge) => [...document.querySelectorAll("table, svg, p, h1, h2")]
  .filter((node) => node.getBoundingClientRect().right > edge + 1)
  .map((node) => [node.tagName, node.textContent.slice(0, 40)])"""

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser():
    if find_chromium() is None:
        install("chromium")
    path = find_chromium()
    if path is None:
        pytest.skip("no chromium found (Debian: apt-get install chromium)")
    playwright.expect.set_options(timeout=30_000)
    with playwright.sync_playwright() as runner:
        opened = runner.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    config = make_results(tmp_path_factory.mktemp("study"))
    return build(config)


@pytest.fixture
def visit(browser, report):
    """Open a page of the report; gives the page and what it complained of or asked for."""
    opened = []

    def open_page(path="index.html", **options):
        page = browser.new_page(**options)
        opened.append(page)
        seen = SimpleNamespace(page=page, errors=[], requests=[])
        page.on("console", lambda m: seen.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.goto((report / path).resolve().as_uri())
        return seen

    yield open_page
    for page in opened:
        page.close()


def test_it_loads_from_a_file_without_errors_or_outside_requests(visit):
    seen = visit()
    assert seen.errors == []
    outside = [url for url in seen.requests if not url.startswith(("file:", "data:"))]
    assert outside == []
    assert seen.page.title() == "Study report: home and away"


PAGES = ["index.html", "home.html", "../recordings/home/sub-home000_task-rest.html",
         "../recordings/home/sub-home003_task-rest.html"]  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_quiet_and_fits(visit, path):
    seen = visit(path, viewport={"width": 400, "height": 800})
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 400
    assert seen.page.evaluate(_CONTRAST) == []


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit, path, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    found = axe.Axe().run(visit(path, color_scheme=scheme).page).response["violations"]
    grave = [f for f in found if f["impact"] in ("serious", "critical")]
    assert [(f["id"], f["nodes"][0]["html"][:200]) for f in grave] == []


def test_the_template_fades_in_under_the_recording(visit):
    page = visit(PAGES[2]).page
    over = page.locator('[id$="-over"]')
    assert over.count() == 1
    page.get_by_label("Template to recording").fill("25")
    assert over.evaluate("node => getComputedStyle(node).opacity") == "0.25"
    page.get_by_role("button", name="Flicker").click()
    playwright.expect(over).to_have_css("opacity", "1")


def test_one_colouring_of_the_latent_map_is_chosen(visit):
    page = visit().page
    maps = page.locator("[data-choice] figure")
    assert maps.count() == 4
    page.get_by_label("Colour by").select_option("site")
    assert [maps.nth(i).is_visible() for i in range(4)] == [False, False, False, True]
    assert HOSTILE[:20] in maps.nth(3).inner_text()


def test_links_between_pages_lead_somewhere(visit, report):
    page = visit().page
    page.get_by_role("link", name="home", exact=True).first.click()
    assert page.title() == "Cohort home"
    page.get_by_role("link", name="sub-home000_task-rest").click()
    assert page.title() == "sub-home000_task-rest"
    page.get_by_role("link", name="Study report").click()
    assert page.url == (report / "index.html").as_uri()


def test_flags_survive_a_reload_and_are_exported(visit, tmp_path):
    page = visit("home.html").page
    page.get_by_label("flag sub-home001_task-rest").check()
    page.get_by_label("reason for sub-home001_task-rest").fill('"a "bad"\tone 🧠')
    page.reload()
    assert page.get_by_label("flag sub-home001_task-rest").is_checked()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export 1 flagged as TSV").click()
    assert download.value.suggested_filename == "home-exclude.tsv"
    download.value.save_as(tmp_path / "exclude.tsv")
    # and the pipeline reads it as the cohort's exclusion list
    names = [f"sub-home00{n}_task-rest" for n in (0, 1)]
    entries = [Entry(n, n[:11], None, "rest", None, tmp_path, n, None, 1, 1, "00000")
               for n in names]  # fmt: skip
    cohort = Cohort(name="home", folder=tmp_path, exclude=tmp_path / "exclude.tsv")
    found = _excluded(entries, cohort)
    assert list(found) == ["sub-home001_task-rest"]
    assert found["sub-home001_task-rest"]["reason"] == '"a "bad" one 🧠'


def test_the_cohort_table_filters_and_sorts_all_rows(visit):
    page = visit("home.html").page
    page.get_by_label("Show rows with").fill("unreadable")
    assert page.locator("[data-paged] tbody tr").count() == 1
    page.get_by_label("Show rows with").fill("")
    page.get_by_role("button", name="mean FD (mm)").click()
    values = page.locator("[data-paged] tbody tr td:nth-child(4)").all_inner_texts()
    numbers = [float(v.split()[0]) for v in values if v != "–"]
    assert numbers == sorted(numbers)
    assert len(values) == 61


def test_hostile_strings_are_shown_as_text(visit):
    seen = visit()
    cell = seen.page.locator("td", has_text="document.title").first
    assert cell.inner_text().replace("\n", " ") == HOSTILE
    assert seen.page.locator("td b, li b, td script, li script").count() == 0


def test_tables_sort_by_click_and_by_keyboard_and_filter(visit):
    page = visit().page
    table = page.locator("table[data-sortable]").first
    names = "tbody tr td:first-child"
    table.locator("th button").first.click()
    ascending = table.locator(names).all_inner_texts()
    assert ascending == sorted(ascending)
    table.locator("th button").first.focus()
    page.keyboard.press("Enter")
    assert table.locator(names).all_inner_texts() == ascending[::-1]
    assert table.locator("th").first.get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("width", [360, 820, 1280])
def test_the_page_never_scrolls_sideways(visit, width):
    page = visit(viewport={"width": width, "height": 800}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_in_both_schemes(visit, scheme):
    page = visit(color_scheme=scheme).page
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.evaluate(_CONTRAST) == []


def test_it_prints_on_white_with_every_table(visit):
    page = visit(color_scheme="dark").page
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".contents").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 less 1 cm on each side
    edge = page.evaluate("document.documentElement.clientWidth")
    wide = page.evaluate(_WIDER_THAN, edge)
    assert wide == []  # nothing is cut off at the paper's edge


def test_the_keyboard_reaches_the_content_first(visit):
    page = visit().page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")


def test_screenshots_are_small_pictures_of_the_pages(browser, report, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs")
    from take_screenshots import take

    made = take(report, tmp_path, browser)
    assert [path.name for path in made] == ["study.png", "recording.png"]
    for path in made:
        assert path.stat().st_size < 150_000
        with Image.open(path) as image:
            assert image.size == (1100, 760) and len(image.getcolors()) > 10
