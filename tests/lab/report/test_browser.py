"""The report as a browser shows it."""

import re
import shutil

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib", "jinja2"):
    pytest.importorskip(_package)
from report_pages import SMALL  # noqa: E402


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install playwright)")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


LOOK = """() => ({
    wide: document.documentElement.scrollWidth - window.innerWidth,
    page: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.querySelector('figure svg text')).fill,
    small: Math.min(...Array.from(document.querySelectorAll('figure svg text'), t => t.getBoundingClientRect().height)),
    cut: (glance => glance.scrollWidth - glance.clientWidth)(document.querySelector('#glance + .scroll')),
    narrow: Math.min(...Array.from(document.querySelectorAll('figure svg'), svg => svg.getBoundingClientRect().width)),
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_in_a_browser(full, browser, width, scheme):
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    asked, said = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto((full.path / "report.html").as_uri())
    look = tab.evaluate(LOOK)
    assert len(asked) == 1  # the page itself
    assert said == []
    assert look["wide"] <= 0  # nothing but a table's own box scrolls sideways
    assert look["cut"] <= 0  # of the overview, nothing is hidden
    assert look["narrow"] > 250
    assert look["small"] >= 7  # pixels: the smallest text of a figure can be read
    bright = sum(map(int, re.findall(r"\d+", look["page"])[:3])) > 3 * 128
    assert bright == (scheme == "light")
    assert look["ink"] != look["page"]
    if width == 1280:
        assert tab.pdf(format="A4").startswith(b"%PDF")
    tab.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_the_overview_of_mixed_sources_is_not_cut(folder, browser, width):
    long = "a_name_of_a_corpus_without_a_single_blank_in_it_" * 3
    for norm in ("layer", "rms", "prms"):
        for seed in (0, 1):
            p = 0.125 if norm == "prms" else None
            folder.run(
                norm, seed, 1234.5, p=p, name="Python 3.11.7 standard library", model={**SMALL, "init_mean": 0.2}
            )
            folder.run(norm, seed, 1234.5, p=p, name=long, stand_in=False, sha256="cd" * 32, label=long)
    folder.timing(kernels="unfused")
    folder.page()
    tab = browser.new_page(viewport={"width": width, "height": 800})
    tab.goto((folder.path / "report.html").as_uri())
    look = tab.evaluate(LOOK)
    assert look["cut"] <= 0
    assert look["wide"] <= 0
    tab.close()
