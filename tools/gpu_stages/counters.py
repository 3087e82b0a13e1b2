"""Stage 7: hardware counters of eight kernels, if Nsight Compute is installed."""

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
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
COUNTED = (1024, 4096, 16384, 131072)
PROGRAM = """
import sys
from pathlib import Path
from gpu_stages.stage import Setting
from rmsnorm_lab.bench import runner
from rmsnorm_lab.bench.cases import Case
from rmsnorm_lab.bench.torch_providers import Ours
case = Case(*{case!r}, device="cuda")
call = Ours().build(case, runner.make_inputs(case)).call
call(), call()
"""


def items(setting: Setting) -> Iterator[Item]:
    for case in cases.shapes(setting):
        if case.n in COUNTED and not case.adds:
            yield str(case), partial(_counted, setting, replace(case, rows=max(1, case.rows // 2)))


def _counted(setting: Setting, case: Case) -> dict[str, Any]:
    ncu = shutil.which("ncu")
    if ncu is None or setting.rehearsal:
        return {"skipped": "Nsight Compute (ncu) is not installed" if ncu is None else "needs a device"}
    program = PROGRAM.format(case=(case.op, case.direction, case.dtype, case.rows, case.n))
    command = [ncu, "--csv", "--clock-control", "none", "--kernel-name", "regex:.*(ward|finish).*_kernel"]
    command += ["--metrics", ",".join(METRICS), sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25)
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    if not rows:
        return {"error": (done.stdout + done.stderr)[-500:]}
    kernels: dict[str, dict[str, str]] = {}
    for row in rows:  # the last launch of each kernel counts
        own = kernels.setdefault(f"{row['ID']} {row['Kernel Name']}", {})
        own[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return {"kernels": kernels}
