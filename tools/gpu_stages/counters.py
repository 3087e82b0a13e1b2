"""Stage 7: hardware counters of eight kernels, if Nsight Compute is installed."""

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from gpu_stages import cases
from gpu_stages.stage import Item, Setting
from rmsnorm_lab.bench.cases import Case

METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
)
COUNTED = ((4096,), (1024, 16384, 131072))  # the lengths of a process: the most important one is not kept waiting
KERNELS = "regex:^(forward|backward|finish|rows|columns|head|stream)"  # torch's have other names
SECONDS = 25  # for a process, of which importing torch takes some
PROGRAM = """
import ctypes
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: it ends with ncu, which alone is killed at the time limit
from rmsnorm_lab.bench import runner
from rmsnorm_lab.bench.cases import Case
from rmsnorm_lab.bench.torch_providers import Ours
for fields in {cases!r}:
    case = Case(*fields, device="cuda")
    call = Ours().build(case, runner.make_inputs(case)).call
    call(), call()
"""


def items(setting: Setting) -> Iterator[Item]:
    plain = [case for case in cases.shapes(setting) if not case.adds]
    for lengths in COUNTED:
        name = "n = " + ", ".join(map(str, lengths))
        yield name, partial(_counted, setting, [case for n in lengths for case in plain if case.n == n])


def _counted(setting: Setting, counted: Sequence[Case]) -> dict[str, Any]:
    ncu = shutil.which("ncu")
    if ncu is None or setting.rehearsal:
        return {"skipped": "Nsight Compute (ncu) is not installed" if ncu is None else "needs a device"}
    fields = [(case.op, case.direction, case.dtype, max(1, case.rows // 2), case.n) for case in counted]
    command = [ncu, "--csv", "--clock-control", "none", "--kernel-name", KERNELS]
    command += ["--metrics", ",".join(METRICS), sys.executable, "-c", PROGRAM.format(cases=fields)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    if not rows:
        return {"error": (done.stdout + done.stderr)[-500:]}
    kernels: dict[str, dict[str, str]] = {}
    for row in rows:
        own = kernels.setdefault(f"{row['ID']} {row['Kernel Name']}", {})
        own[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return {"kernels": kernels}
