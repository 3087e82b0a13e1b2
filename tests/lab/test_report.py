"""``rmsnorm report``: what the page says, that nothing in a record can break it, and how it looks in a browser."""

import base64
import csv
import gzip
import html
import io
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
from rmsnorm.timing import Spread  # noqa: E402
from rmsnorm_lab.experiments import store  # noqa: E402
from rmsnorm_lab.experiments.data.official import FILES, OTHER_FILES  # noqa: E402
from rmsnorm_lab.experiments.hidden_states import KEYS  # noqa: E402
from rmsnorm_lab.experiments.recipes.common import TrainConfig  # noqa: E402
from rmsnorm_lab.experiments.record import Content, Curve, Metric  # noqa: E402
from rmsnorm_lab.experiments.store import RunStore  # noqa: E402
from rmsnorm_lab.report.collect import collect  # noqa: E402
from rmsnorm_lab.report.verdicts import Verdict, of_all  # noqa: E402

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
        parameters=None,
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
            parameters=parameters,
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
        for norm, quality in (("none", 9.0), ("batch", 12.0), ("layer", 14.0), ("rms", 15.0), ("prms", 16.0)):
            folder.run(norm, seed, quality + shift, p=0.125 if norm == "prms" else None)
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
            if element.get("download") and name == "href":
                assert value.startswith("data:")
            elif str(name).endswith(("href", "src")):
                assert value.startswith("#"), (element.tag, name, value)
                assert value[1:] in ids
            for target in re.findall(r"url\((.*?)\)", value):
                assert target.strip("#") in ids
    assert "http" not in page
    assert "url(" not in re.search(r"<style>.*</style>", page, re.DOTALL)[0]


def test_what_it_says(page):
    said = text_of(page)
    assert "images 40 steps stand-in data" in said
    assert "BatchNorm 12.25 ± 0.35 paper, other data 8.25" in said
    assert "LayerNorm 14.25 ± 0.35 paper, other data 10.49" in said
    assert "pRMSNorm of the first 12.5 %" in said
    assert "guessing would give 90.00" in said
    assert "LayerNorm diverged paper, other data 10.49" in said  # the one run of seven steps
    assert "RMSNorm 8.0 1,244 19.9 [19.9, 20.0] paper 20.5" in said  # only unfused is beside the paper's time
    assert said.count("paper 20.5") == 4  # at 40 and at 7 steps, and in the overview
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


def test_runs_that_differ_in_a_learning_rate_are_not_averaged(folder):
    for seed, rate in ((0, 0.003), (1, 0.003), (0, 0.5)):
        folder.run("prms", seed, 5.0 + seed + 70 * (rate == 0.5), p=0.125, rate=rate)
    folder.run("prms", 0, 44.0, p=0.5, rate=0.5)
    said = text_of(folder.page())
    assert "pRMSNorm 5.50 ± 0.71" in said
    assert "75.00" not in said
    assert "also recorded, not shown: pRMSNorm of the first 50 % at 0.5" in said
    assert "Learning rates: test error, % ↓, validation split, seed 0" in said
    assert "norm 0.003 0.5 pRMSNorm 10.00 * 10.00 * the best of its row" in said


def test_the_verdict_and_the_differences(folder):
    for seed in range(3):
        folder.run("layer", seed, 5.0 + seed)
        folder.run("none", seed, 5.0 + seed + 0.01 * seed)
        folder.run("rms", seed, 4.0 + seed + 0.1 * seed)
        folder.run("prms", seed, None if seed else 9.0, p=0.125)
    folder.timing(kernels="unfused")
    said = text_of(folder.page())
    better = "RMSNorm is better than LayerNorm in test error, % (RMSNorm − LayerNorm: −0.90 [−1.15, −0.65], 3 seeds)"
    saves = "RMSNorm saves 19.9 % [19.9, 20.0] of a step with norms in framework operators"
    assert f"images, 40 steps stand-in data : {better}; {saves}." in said
    assert (
        "RMSNorm's quality: better in 1 of 1 experiment (images); with norms in framework operators RMSNorm saves "
        in said
    )
    assert "no norm − LayerNorm +0.01 [−0.01, 0.03] no difference shown" in said
    assert "RMSNorm − LayerNorm −0.90 [−1.15, −0.65] better" in said
    assert "pRMSNorm − LayerNorm +4.00 one seed" in said
    assert "RMSNorm, seed 1 5.10 1" in said  # and the training loss
    assert "pRMSNorm, seed 2 diverged at step 2 1" in said


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.1], "saves 10.0 % of a step in 1 of 1"),
        ([0.1, 0.2, 0.0], "saves 10.0 to 20.0 % of a step in 2 of 3"),
        ([-0.1, 0.0004, 0.3], "saves 30.0 % of a step in 1 of 3 and costs 10.0 % of a step in 1 of 3"),
        ([0.0], "shows no saving in 1 of 1"),
    ],
)
def test_the_sentence_for_the_whole_page(shares, expected):
    found = [Verdict("", None, {"best": Spread(share, (share, share))}) for share in shares]
    assert of_all(["images"] * len(found), found) == f"Against torch's LayerNorm RMSNorm {expected}."
    costs = Verdict("", None, {"best": Spread(-0.1, (-0.2, -0.05))}).sentence
    assert "RMSNorm takes longer against torch's LayerNorm (it saves −10.0 % [−20.0, −5.0] of a step)" in costs
    assert of_all([], []) == "No experiment has both RMSNorm and LayerNorm."


def test_contents_lead_everywhere_and_the_title_says_what_it_is_about(page):
    tree = parsed(page)
    (contents,) = (each for each in tree.iter("nav"))
    linked = {link.get("href")[1:] for link in contents.iter("a")}
    assert linked == {heading.get("id") for heading in tree.iter("h2")}
    assert "<title>RMSNorm against LayerNorm: quality and time in 3 experiments</title>" in page


def test_the_data_can_be_downloaded(full, page):
    tree = parsed(page)
    files = {link.get("download"): link.get("href") for link in tree.iter("a") if link.get("download")}
    content = {name: base64.b64decode(address.partition(";base64,")[2]) for name, address in files.items()}
    runs = list(csv.DictReader(io.StringIO(content["runs.csv"].decode())))
    assert (
        len(runs) == 15
    )  # 10 runs at 40 steps, two of other p, one of another rate, one of 7 steps, one of another task
    (run,) = (row for row in runs if (row["norm"], row["seed"], row["task"]) == ("layer", "1", "images"))
    assert (run["test_error"], run["stand_in"], run["learning_rate"]) == ("14.5", "True", "0.003")
    times = list(csv.DictReader(io.StringIO(content["times.csv"].decode())))
    assert len(times) == 2 * 3 * 9  # with both experiments of images
    assert (times[1]["layer"], times[1]["rms"]) == ("10.01", "8.01")
    lines = gzip.decompress(content["records.jsonl.gz"]).decode()
    assert lines == "".join(path.read_text() for path in sorted(full.path.glob("*.jsonl")))


def test_parameters_are_shown_where_they_are_recorded(folder):
    folder.run("rms", 0, 5.0)
    assert "parameters" not in text_of(folder.page())
    folder.run("layer", 0, 5.0, parameters=12345)
    said = text_of(folder.page())
    assert "LayerNorm 5.00 paper, other data 10.49 12,345 " in said
    assert "RMSNorm 5.00 paper, other data 8.83 – " in said


def test_examples_per_second():
    def of(task, **changes):
        (experiment,) = collect([run_record(task=task, **changes)])
        return experiment.examples

    assert of("language", model={"context": 64}) == (640, "characters")
    assert of("transformer", data={"by_tokens": True}) == (10, "tokens (at most, with padding)")
    assert of("transformer", data={"by_tokens": False}) == (10, "sentence pairs")
    assert of("unheard-of") is None


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
    assert said.count("A processor <2>") == 1 + said.count("rounds on A processor <2>")
    assert "commits 000000000000, 111111111111, 222222222222, 333333333333, 444444444444" in said
    assert "The records differ in commit 000000000000, 111111111111, 222222222222 and 2 more" in said


def test_machines_that_differ_in_versions_and_memory_are_one(folder):
    folder.timing(rounds=6)
    folder.timing(rounds=7, machine=replace(MACHINE, memory_gib=8.5, versions={**MACHINE.versions, "torch": "2.12.0"}))
    folder.timing(rounds=8, machine=ELSEWHERE)
    said = text_of(folder.page())
    assert (
        "2 records: A processor <2> 2 threads, 8 to 8.5 GiB, Linux Python 3.11, numpy 2.0, torch 2.12.0 or 2.13.0"
        in said
    )
    assert "1 record: Another processor 2 threads, 8 GiB" in said


def test_hashes_are_short(folder):
    folder.run("rms", 0, 5.0, details={"subwords sha256": "0123456789abcdef" * 4, "split": "by hash"})
    said = text_of(folder.page())
    assert "subwords sha256 0123456789ab, sha256 abababababab" in said
    assert not re.search(r"[0-9a-f]{13}", re.sub(r'"data:[^"]*"', "", text_of(said)))


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
