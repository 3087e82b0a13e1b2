"""``rmsnorm report``: what the page says, that nothing in a record can break it, and how it looks in a browser."""

import html
import os
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib", "jinja2"):
    pytest.importorskip(_package)

from made_records import MACHINE, run_record, timing_record, with_result  # noqa: E402
from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab.experiments import norms, store  # noqa: E402
from rmsnorm_lab.experiments.data.official import FILES, OTHER_FILES  # noqa: E402
from rmsnorm_lab.experiments.hidden_states import KEYS  # noqa: E402
from rmsnorm_lab.experiments.recipes.common import TrainConfig  # noqa: E402
from rmsnorm_lab.experiments.record import Content, Curve, Metric  # noqa: E402
from rmsnorm_lab.experiments.store import RunStore  # noqa: E402
from rmsnorm_lab.report.collect import collect  # noqa: E402

HOSTILE = "<script>alert('x')</script> & \"$\\frac{1$"
DETAILS = {"images": {"train": 1797}, "split": "by <hash>", "unbroken": "nrefs:1|" * 20}
SMALL = {"width": 8, "layers": 1}


def setting(kernels="rmsnorm", model=SMALL, stand_in=True, sha256="ab" * 32, details=DETAILS):
    return {"kernels": kernels, "model": model, "source": Content(stand_in, sha256, details)}


class Folder:
    """Writes records as the commands do."""

    def __init__(self, path):
        path.mkdir()
        self.path, self.store = path, RunStore(path)

    def run(
        self,
        norm,
        seed,
        quality,
        *,
        task="images",
        rate=0.003,
        p=None,
        label="test error, %",
        steps=40,
        more=(),
        on_validation="",
        name="digits",
        processes=None,
        **of_setting,
    ):
        train = TrainConfig(steps=steps, batch=10, learning_rate=rate)
        valid = {"test_error": [90.0, 40.0 + seed, 12.0, 10.0], "loss": [2.3, 1.0 + seed / 10, 0.4, 0.3]}
        made = run_record(
            norm, seed, quality, task=task, p=p, train=train, processes=processes, **setting(**of_setting)
        )
        made = with_result(
            made,
            quality=quality if quality is None else {"test_error": quality, "loss": 0.3, **dict(more)},
            curve=Curve([0, 10, 20, 40], [0.0, 1.0, 2.0, 4.0], [None, 1.0, 1.0, 1.0], valid),
            metrics=(Metric("test_error", label, False, ".2f", on_validation),),
            references={"guessing": 90.0},
        )
        self.store.put(replace(made, source_name=name))

    def timing(self, task="images", batch=10, rounds=9, machine=MACHINE, **of_setting):
        norms = ["none", "batch", "layer", "rms", "prms"]
        milliseconds = {norm: [10.0 - 2 * (norm == "rms") + 0.01 * round for round in range(rounds)] for norm in norms}
        self.store.put(timing_record(milliseconds, task=task, machine=machine, batch=batch, **setting(**of_setting)))

    def page_of(self, norm):
        self.run(norm, 0, 5.0)
        return self.page()

    def page(self, *flags):
        assert main(["report", str(self.path), *flags]) == 0
        return (self.path / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "runs")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Everything that a page can have, and its page. Tests that change it take a copy."""
    folder = Folder(tmp_path_factory.mktemp("full") / "runs")
    for seed, shift in ((0, 0.0), (1, 0.5)):
        for norm in ("none", "batch", "layer", "rms", "prms"):
            folder.run(norm, seed, 9.0 + norms.place(norm) + shift, p=0.125 if norm == "prms" else None)
    for p in (0.25, 0.5):
        folder.run("prms", 0, 12.0, p=p)
    folder.run("rms", 0, 77.0, rate=0.5)
    folder.run("layer", 0, None, steps=7)
    folder.run("rms", 0, 5.0, task="unheard-of", name=HOSTILE, stand_in=False, label=HOSTILE)
    for kernels in ("unfused", "rmsnorm", "best"):
        folder.timing(kernels=kernels)
    folder.page()
    return folder


@pytest.fixture(scope="module")
def page(full):
    return (full.path / "report.html").read_text(encoding="utf-8")


def text_of(page):
    """What is read: without style and tags."""
    bare = re.sub(r"<[^>]*>", " ", re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL))
    return html.unescape(re.sub(r"\s+", " ", bare))


def parsed(page):
    html5lib = pytest.importorskip("html5lib", reason="html5lib, the HTML validator, is not installed")
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)  # raises where HTML5 has an error


def test_the_page_is_valid_and_needs_nothing_else(page):
    tree = parsed(page)
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert "script" not in {element.tag for element in tree.iter()}
    for element in tree.iter():
        for name, value in element.items():
            if str(name).endswith(("href", "src")):
                assert value.startswith("#"), (element.tag, name, value)
                assert value[1:] in ids
            for target in re.findall(r"url\((.*?)\)", value):
                assert target.strip("#") in ids
    assert "http" not in page
    assert "url(" not in re.search(r"<style>.*</style>", page, re.DOTALL)[0]


def test_what_it_says(page):
    said = text_of(page)
    assert "images 40 steps stand-in data" in said
    assert "BatchNorm 12.25 ± 0.35 paper, other data 8.25" in said  # the index of "batch" is 3
    assert "LayerNorm 14.25 ± 0.35 paper, other data 10.49" in said
    assert "pRMSNorm of the first 12.5 %" in said
    assert "guessing would give 90.00" in said
    assert "LayerNorm diverged paper, other data 10.49" in said  # the one run of seven steps
    assert "RMSNorm 8.0 19.9 [19.9, 20.0] paper 20.5" in said  # unfused alone stands beside the paper's time
    assert said.count("paper 20.5") == 2  # at 40 and at 7 steps
    assert "12.3 3.0" in said  # profiler and peak
    assert "30 of 30 cells agree" in said
    assert "A processor <2>" in said
    assert "commit 0123456789ab" in said
    assert "digits, images (train 1,797), split by <hash>, unbroken nrefs:1|nrefs" in said
    assert "|, sha256 abababababab" in said
    assert "the paper's Fig. 3" in said


def test_stand_in_data_is_marked_at_every_table_and_figure_and_nothing_else_is(page, folder):
    for section in re.findall(r"<section.*?</section>", page, flags=re.DOTALL):
        badges = section.count('class="stand-in"')
        if ">images <" in section:
            shown = section.count("<table") + section.count("<figure")
            assert badges == shown + 1  # and the heading
        else:
            assert badges == 0
    folder.run("rms", 0, 5.0, stand_in=False)
    assert "stand-in data" not in text_of(folder.page())


def test_what_stands_in_a_record_is_text(page):
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp;" in page
    assert "<script" not in page


def test_runs_that_differ_in_a_learning_rate_are_not_averaged(page):
    said = text_of(page)
    assert "77" not in said
    assert "also recorded, not shown: RMSNorm at 0.5" in said


def test_experiments_are_told_apart(full):
    found = collect(store.load(full.path))
    assert [(each.task, each.train.steps) for each in found] == [("images", 40), ("images", 7), ("unheard-of", 40)]
    assert list(found[0].timings) == ["unfused", "rmsnorm", "best"]
    assert [(line.norm, line.p, len(line.records)) for line in found[0].main("rmsnorm")] == [
        ("none", None, 2),
        ("batch", None, 2),
        ("layer", None, 2),
        ("rms", None, 2),
        ("prms", 0.125, 2),
    ]


def test_a_heading_says_in_what_experiments_of_a_task_differ(folder):
    folder.run("rms", 0, 5.0)
    folder.run("rms", 0, 5.0, model={**SMALL, "init_mean": 0.2}, steps=1000)
    said = text_of(folder.page())
    assert "images 40 steps stand-in data" in said
    assert "images 1,000 steps, init mean 0.2 stand-in data" in said


def test_times_alone_and_runs_alone(folder):
    folder.timing(kernels="best", batch=64)
    said = text_of(folder.page())
    assert "times alone" in said
    folder.run("rms", 0, 5.0)
    assert "Loss by wall time" not in text_of(folder.page())


ELSEWHERE = replace(MACHINE, cpu="Another processor", commit="fedcba9876543210")


def test_the_timing_with_most_rounds_is_shown_and_the_others_are_named(folder):
    folder.run("rms", 0, 5.0)
    folder.run("layer", 0, 5.0)
    folder.timing(rounds=9)
    folder.timing(rounds=2, machine=ELSEWHERE)  # the newest
    said = text_of(folder.page())
    assert "[19.9, 20.0]" in said
    assert "one step of each per round, 9 rounds on A processor <2>" in said
    assert "Also timed, not shown: 2 rounds on Another processor" in said
    assert "too few rounds" not in said
    folder.timing(rounds=9, machine=ELSEWHERE)
    assert "one step of each per round, 9 rounds on A processor <2>" in text_of(folder.page())  # the runs' own
    folder.timing(rounds=11, machine=ELSEWHERE)
    said = text_of(folder.page())
    assert "one step of each per round, 11 rounds on Another processor" in said
    assert "Loss by wall time: steps × interleaved step time on Another processor" in said  # the runs are not of it


def test_runs_by_several_processes_are_an_experiment_of_their_own_with_the_same_times(folder):
    folder.run("rms", 0, 5.0)
    folder.run("rms", 0, 7.0, processes="ddp2")
    folder.timing()
    alone, several = collect(store.load(folder.path))
    assert alone.timings == several.timings
    assert len(alone.lines["rmsnorm"][0].records) == 1
    assert "images 40 steps, processes ddp2 stand-in data" in text_of(folder.page())


def test_data_are_told_apart_by_name_and_hash(folder):
    folder.run("rms", 0, 5.0)
    folder.run("rms", 0, 7.0, name="mine", stand_in=False, sha256="cd" * 32)
    said = text_of(folder.page())
    assert "images 40 steps, digits (abababab) stand-in data" in said
    assert "images 40 steps, mine (cdcdcdcd)" in said
    assert "stand in True" not in said


def test_the_name_of_the_data_does_not_part_runs(folder):
    folder.run("rms", 0, 5.0, name="cifar")
    folder.run("rms", 1, 6.0, name="renamed")
    (found,) = collect(store.load(folder.path))
    assert [len(line.records) for line in found.lines["rmsnorm"]] == [2]


def test_a_curve_has_the_name_of_the_validation_set_s_figure(folder):
    folder.run("rms", 0, 5.0, label="BLEU\nnewstest2014", on_validation="BLEU")
    said = text_of(folder.page())
    assert "BLEU by steps, validation" in said
    assert "BLEU newstest2014 by" not in said
    assert "one seed each" in said


@pytest.mark.parametrize(
    ("details", "official"),
    [
        ({"test images": 10_000}, True),
        ({"test images": 600}, False),
        ({"test images": 10_000, FILES: OTHER_FILES}, False),
    ],
)
def test_the_papers_quality_stands_alone_beside_its_own_data_only(folder, details, official):
    folder.run("rms", 0, 5.0, name="cifar", stand_in=False, details=details)
    folder.timing(kernels="unfused", stand_in=False, details=details)
    said = text_of(folder.page())
    assert ("RMSNorm 5.00 paper 8.83" in said) == official
    assert ("RMSNorm 5.00 paper, other data 8.83" in said) != official
    assert ("cifar · not the paper's data" in said) != official
    assert ("its quality cannot be compared" in said) != official
    assert "paper 20.5" in said  # time is of the model


def test_commits_are_short_and_machines_that_differ_in_them_alone_are_one(folder):
    for place in range(5):
        machine = replace(MACHINE, commit=f"{place}" * 40)
        folder.timing(rounds=6 + place, machine=machine)
    said = text_of(folder.page())
    assert "5 records:" in said
    assert "commits 000000000000, 111111111111, 222222222222, 333333333333, 444444444444" in said
    assert "The records differ in commit 000000000000, 111111111111, 222222222222 and 2 more" in said


def test_the_same_records_make_the_same_page_wherever_it_is_written(full, page, tmp_path, capsys):
    assert main(["report", str(full.path), "--out", str(tmp_path / "page.html")]) == 0
    assert "18 records" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page


def test_the_page_goes_through_links_and_into_devices(full, page, tmp_path, capsys, device_without_room):
    link = tmp_path / "link.html"
    link.symlink_to(tmp_path / "target.html")
    assert main(["report", str(full.path), "--out", str(link)]) == 0
    assert link.is_symlink()
    assert (tmp_path / "target.html").read_text(encoding="utf-8") == page
    capsys.readouterr()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = tmp_path / "read"
    with read.open("wb") as file, subprocess.Popen(["cat", str(pipe)], stdout=file) as reader:
        try:
            status = main(["report", str(full.path), "--out", str(pipe)])
            reader.wait(10)
        finally:
            reader.kill()  # where nothing was written, it would wait for ever
    assert status == 0
    assert read.read_text(encoding="utf-8") == page
    assert capsys.readouterr().out == ""  # it may be standard output
    assert main(["report", str(full.path), "--out", str(device_without_room)]) == 2
    assert f"{device_without_room} must be writable, and is not: No space left on device" in capsys.readouterr().err
    assert device_without_room.is_char_device()


def test_wrong_use_is_said_and_leaves_nothing(full, tmp_path, capsys):
    shutil.copytree(full.path, tmp_path / "runs")
    (tmp_path / "runs" / "report.html").unlink()
    (tmp_path / "empty").mkdir()
    for flags, said in (
        ([str(tmp_path / "none")], "RUNS must be a folder of records"),
        ([str(tmp_path / "empty")], "holds no records"),
        ([str(tmp_path / "runs"), "--out", str(tmp_path / "no" / "page.html")], "a folder that exists"),
    ):
        assert main(["report", *flags]) == 2
        assert said in capsys.readouterr().err
    assert not list((tmp_path / "empty").iterdir())
    torn = next((tmp_path / "runs").glob("images-rms-*"))
    torn.write_text(torn.read_text()[:100])
    assert main(["report", str(tmp_path / "runs")]) == 2
    assert torn.name in capsys.readouterr().err
    assert not (tmp_path / "runs" / "report.html").exists()
    assert main(["report", str(tmp_path / "runs"), "--set-aside"]) == 0
    said = capsys.readouterr()
    assert f"set aside: {tmp_path / 'runs' / 'aside' / torn.name}" in said.err
    assert "17 records" in said.out


def test_hidden_states_and_weights_around_another_mean(folder):
    """The paper's Table 5 and Fig. 4, from runs of a network with a decoder to look into."""
    states = {key: -1.005 for keys in KEYS.values() for key in keys}
    for seed in (0, 1):
        folder.run("layer", seed, 5.0 + seed, more=states, model={**SMALL, "init_mean": 0.2})
    said = text_of(folder.page())
    assert "the paper's Table 5, on other data" in said
    assert said.count("−1.00 paper −0.43 −1.00 paper −0.48") == 1
    assert "weights drawn around 0.2 instead of 0" in said
    assert "Table 5" not in text_of(Folder(folder.path.parent / "other").page_of("layer"))


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
    assert look["narrow"] > 250
    assert look["small"] >= 7  # pixels: the smallest text of a figure can be read
    bright = sum(map(int, re.findall(r"\d+", look["page"])[:3])) > 3 * 128
    assert bright == (scheme == "light")
    assert look["ink"] != look["page"]
    if width == 1280:
        assert tab.pdf(format="A4").startswith(b"%PDF")
    tab.close()
