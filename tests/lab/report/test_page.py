"""The page of ``rmsnorm report``: valid, complete in one file, stand-in data marked, and downloadable."""

import base64
import csv
import gzip
import io
import re
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib", "jinja2"):
    pytest.importorskip(_package)
from made_records import with_result  # noqa: E402
from report_pages import SMALL, Folder, text_of  # noqa: E402
from rmsnorm_lab.experiments import store  # noqa: E402
from rmsnorm_lab.experiments.data.official import FILES, OTHER_FILES  # noqa: E402
from rmsnorm_lab.experiments.hidden_states import KEYS  # noqa: E402


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


def test_figures_that_cannot_be_drawn_and_names_that_are_no_utf_8(folder):
    """What no recipe makes, in records that are whole."""
    folder.run("rms", 0, 1e308, more={"only here": 1.0}.items())
    folder.run("rms", 1, 2.0)
    folder.run("my\udcff.py@3f2a91c0", 0, 5.0)
    (record,) = (each for each in store.load(folder.path) if each.result.quality["test_error"] == 2.0)
    steep = replace(record.result.curve, valid={**record.result.curve.valid, "loss": [2.3, 1e308, 1e308, 0.3]})
    folder.store.put(with_result(record, curve=replace(steep, step=[0, 1 << 62, (1 << 63) - 2, (1 << 63) - 1])))
    page = folder.page()
    assert "my\\udcff.py@3f2a91c0" in page


def test_hashes_are_short(folder):
    folder.run("rms", 0, 5.0, details={"subwords sha256": "0123456789abcdef" * 4, "split": "by hash"})
    said = text_of(folder.page())
    assert "subwords sha256 0123456789ab, sha256 abababababab" in said
    assert not re.search(r"[0-9a-f]{13}", re.sub(r'"data:[^"]*"', "", text_of(said)))


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
