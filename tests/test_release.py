"""The version is written by hand in two files, and a release has a section of the changelog: they must agree."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / "CITATION.cff").is_file():
    pytest.skip("the repository's files do not lie beside the tests", allow_module_level=True)


def first(pattern: str, name: str) -> str:
    found = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"{name} must have a line that matches {pattern}"
    return found[1]


def test_the_version_is_the_same_everywhere():
    version = first(r'^version = "(\d+\.\d+\.\d+)"$', "pyproject.toml")
    assert first(r"^version: (\S+)$", "CITATION.cff") == version
    newest = first(r"^## (.+)$", "CHANGELOG.md")
    assert newest == "Unreleased" or re.fullmatch(re.escape(version) + r" \(\d{4}-\d{2}-\d{2}\)", newest), (
        f"the newest section of CHANGELOG.md must be Unreleased, or {version} (YYYY-MM-DD), got {newest}"
    )
