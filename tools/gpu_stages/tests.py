"""A plugin of pytest for stage 9: a line for each test as it ends, so that a run that is stopped has told its results.

GPU_SESSION_LINES names the file.
"""

import json
import os
from typing import Any

_count = 0


def pytest_runtest_logreport(report: Any) -> None:
    """With xdist, the reports of all workers reach the first process, which alone writes."""
    global _count
    if "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.passed):
        return
    line = {"stage": "tests", "index": _count, "item": report.nodeid, "seconds": round(report.duration, 3)}
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        line["error"] = str(crash.message if crash else report.longrepr)[-500:]
    elif report.skipped:
        line["skipped"] = str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)[-200:]
    with open(os.environ["GPU_SESSION_LINES"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    _count += 1
