"""What all stages share: their setting, and the loop that runs their items and writes a line for each."""

import json
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from rmsnorm.timing import Plan, wall_clock
from rmsnorm_lab.bench import cuda

IN_REHEARSAL = 7  # every seventh item: a minute in all on two processors
STICKY = 75  # exit status: the device no longer answers, and the other items need a new process

Item = tuple[str, Callable[[], dict[str, Any]]]


@dataclass(frozen=True)
class Setting:
    """Where a stage runs: on the device, or in rehearsal on a CPU with little data.

    Attributes:
        folder: where results go.
        rehearsal: whether there is no device.
        elements: of the large cases.
    """

    folder: Path
    rehearsal: bool
    elements: int

    @classmethod
    def make(cls, folder: Path, rehearsal: bool) -> "Setting":
        """On a device 256 MiB of bfloat16 a tensor: several times the L2 cache."""
        if rehearsal:
            cuda.DEVICE, cuda.sample, cuda.describe = "cpu", wall_clock, _no_device
        return cls(folder, rehearsal, 1 << 12 if rehearsal else 1 << 27)

    @property
    def plan(self) -> Plan:
        """Samples of 20 ms, three to five rounds."""
        if self.rehearsal:
            return Plan(budget_ns=0, sample_ns=1, lead_ns=1, rounds=(2, 2))
        return Plan(budget_ns=3e8, sample_ns=20e6, lead_ns=5e6, rounds=(3, 5))

    def rows(self, n: int) -> int:
        return max(1, self.elements // n)

    def synchronize(self) -> None:
        if not self.rehearsal:
            torch.cuda.synchronize()


def _no_device() -> cuda.Device:
    return cuda.Device(gpu="rehearsal", multiprocessors=2, gpu_memory_gib=1.0, l2_mib=0.01, cuda="none")


def run(name: str, items: Iterable[Item], path: Path, end: float, skip: int, setting: Setting) -> int:
    """Run the items from ``skip`` on until ``end``, by time.monotonic(), and write a line to ``path`` as each ends.

    Returns the process's exit status.

    A line "begin" precedes each item. If the process dies, that line names the item, and the next process skips it.
    """
    items = islice(items, 0, None, IN_REHEARSAL) if setting.rehearsal else items
    with path.open("a", encoding="utf-8") as file:

        def write(**line: Any) -> None:
            file.write(json.dumps({"stage": name, **line}) + "\n")
            file.flush()

        for index, (item, call) in enumerate(items):
            if index < skip:
                continue
            if time.monotonic() > end:
                write(index=index, item=item, error="not reached: the stage's time was up")
                continue
            write(index=index, item=item, begin=True)
            start = time.monotonic()
            with warnings.catch_warnings(record=True) as warned:  # a kernel that does not compile, say
                warnings.simplefilter("always")
                try:
                    found = call()
                    setting.synchronize()
                except Exception as error:  # an item that fails loses only itself
                    found = {"error": f"{type(error).__name__}: {str(error).strip()[:500]}"}
            if said := [text for w in warned if (text := str(w.message)).startswith("rmsnorm")]:
                found = {**found, "warned": [text[:500] for text in said[:3]]}
            write(index=index, item=item, seconds=round(time.monotonic() - start, 3), **found)
            try:
                setting.synchronize()
            except Exception:  # after an illegal address, say, every later call fails
                return STICKY
    return 0
