"""Folders of made records, and the report's page of one."""

import html
import re
from dataclasses import replace

from made_records import MACHINE, run_record, timing_record, with_result
from rmsnorm.cli import main
from rmsnorm_lab.experiments.recipes.common import TrainConfig
from rmsnorm_lab.experiments.record import Content, Curve, Metric
from rmsnorm_lab.experiments.store import RunStore

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


def text_of(page):
    """What is read: without style and tags."""
    bare = re.sub(r"<[^>]*>", " ", re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL))
    return html.unescape(re.sub(r"\s+", " ", bare))
