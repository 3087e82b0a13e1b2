"""The layers of native/ are those that docs/design.md lists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "src" / "rmsnorm" / "native"


def test_native_files_include_only_their_own_row_and_the_rows_above():
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = design.partition("### The C++ kernels")[2].partition("\n## ")[0]
    rows = [re.findall(r"`native/([\w.]+)`", line) for line in table.splitlines() if line.startswith("| `")]
    row_of = {name: row for row, names in enumerate(rows) for name in names}
    row_of["codes.h"] = row_of["codes.py"]  # the build makes it
    files = [f for f in NATIVE.iterdir() if f.suffix in (".h", ".cpp")]
    assert {f.name for f in files} <= set(row_of)
    upwards = [
        f"{f.name} includes {included}"
        for f in files
        for included in re.findall(r'#include "(?:\.\./native/)?([\w.]+)"', f.read_text(encoding="utf-8"))
        if row_of[included] > row_of[f.name]
    ]
    assert upwards == []
