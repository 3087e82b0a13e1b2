"""The documentation: its Python runs, its command lines parse, its links lead somewhere, its English is plain."""

import doctest
import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from rmsnorm import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
API = ROOT / "docs" / "api.md"
MODULES = ("torch", "numpy", "jax")
PLAIN = [
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", ".ci/run"),
    *("docs", "src", "tests", "tools"),
]
"""Files and folders whose English is checked."""

BANNED = {
    r"\banew\b": "again",
    r"\bso many\b": "N, or the name of the number",
    r"\bby lot\b": "at random",
    r"\bbut for\b": "except for",
    r"\bnobody wants\b": "say what happens",
    r"\bbehind\b": "after, or what it makes",
    r"\bstands\b": "is, or means",
    r"\bwhoever\b": "say who, or use the passive",
    r"\bof so many\b": "of N",
    r"\bthat (is|are) trained with\b": "to train with",
}

FENCE = re.compile(r"^( *)```([^`\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\n+$")


def blocks(page):
    """(language, line of the first line inside, text, why it is not run or None) of each fenced block."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        reason = NOT_RUN.search(text[: match.start()])
        inside = "".join(line.removeprefix(match[1]) for line in match[3].splitlines(keepends=True))
        yield match[2], text.count("\n", 0, match.start(3)) + 1, inside, reason and reason[1]


def named(pages):
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages]


def public_names(module):
    """What the API reference lists for one of ``MODULES``."""
    _, listed = API.read_text(encoding="utf-8").split(f"currentmodule:: rmsnorm.{module}\n")
    return re.findall(r"^   (\w+)$", listed.partition("\n## ")[0], re.MULTILINE)


@pytest.mark.parametrize("module", MODULES)
def test_reference_lists_every_public_name(module):
    assert sorted(public_names(module)) == sorted(pytest.importorskip(f"rmsnorm.{module}").__all__)


def has_python(page):
    return any(language == "python" and not reason for language, _, _, reason in blocks(page))


@pytest.mark.parametrize("page", named(filter(has_python, PAGES)))
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    pytest.importorskip("jax" if page.stem == "jax" else "torch")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for language, line, code, reason in blocks(page):
        if language == "python" and not reason:
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


PUBLIC = [pytest.param(module, name, id=f"{module}.{name}") for module in MODULES for name in public_names(module)]


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_docstring_is_complete_and_its_example_runs(module, name):
    public = getattr(pytest.importorskip(f"rmsnorm.{module}"), name)
    shapes = "Shape:" if isinstance(public, type) else "Returns:"
    missing = {".. math::", "Args:", shapes, "Raises:", "Source:", "Example:"} - set(
        re.findall(r"^\s*(\S+:|\.\. math::)", public.__doc__, re.MULTILINE)
    )
    assert not missing
    framework = pytest.importorskip(module)
    names = {"torch": framework, "np": framework, **vars(sys.modules[f"rmsnorm.{module}"])}
    failed = io.StringIO()
    for test in doctest.DocTestFinder(recurse=False).find(public, name, globs=names):
        doctest.DocTestRunner().run(test, out=failed.write)
    assert not failed.getvalue(), failed.getvalue()


def command_lines(page):
    """(line, words) of each ``rmsnorm`` command in shell blocks and blocks without a language."""
    for language, start, inside, _ in blocks(page):
        if language in ("", "sh"):
            for number, line in enumerate(inside.replace("\\\n", "  ").splitlines()):
                if line.startswith("rmsnorm ") or " -m rmsnorm.cli " in line:
                    words = shlex.split(line, comments=True)
                    first = words.index("rmsnorm.cli") if "rmsnorm.cli" in words else 0
                    end = next((i for i, word in enumerate(words) if word in ("<", ">", "|", "&&")), len(words))
                    yield start + number, words[first + 1 : end]


@pytest.mark.parametrize("page", named(page for page in PAGES if any(command_lines(page))))
def test_command_lines_parse(page):
    for line, (command, *words) in command_lines(page):
        assert command in cli.COMMANDS, f"{page.name}:{line}: rmsnorm {command}"
        try:
            _, unknown = cli.parser_of(command).parse_known_args(words)
        except SystemExit as error:
            if error.code:
                pytest.fail(f"{page.name}:{line}: rmsnorm {command} {shlex.join(words)}")
        else:
            assert not unknown, f"{page.name}:{line}: {unknown} of rmsnorm {command} {shlex.join(words)}"


@pytest.mark.parametrize("page", named(PAGES))
def test_commands_and_flags_in_text_exist(page):
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    for command, rest in re.findall(r"`rmsnorm ([a-z-]+)([^`]*)`", prose):
        assert command in cli.COMMANDS, f"{page.name}: rmsnorm {command}"
        flags = {flag for action in cli.parser_of(command)._actions for flag in action.option_strings}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= flags, f"{page.name}: rmsnorm {command}{rest}"


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shell = "\n".join(inside for language, _, inside, _ in blocks(page) if language in ("", "sh"))
        said = set(re.findall(r"`make ([a-z0-9]+)", text) + re.findall(r"^make ([a-z0-9]+)", shell, re.MULTILINE))
        assert said <= targets, f"{page.name}: {said - targets}"


@pytest.mark.parametrize("page", named(PAGES))
def test_links_lead_to_files_and_headings(page):
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        if "benchmarks/" in path and not (ROOT / "benchmarks").is_dir():
            continue  # the records are not in a source distribution
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(linked), f"{page.name}: {target}"


def test_design_names_files_that_exist():
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").replace("NAME.py", "language.py")
    places = [
        ROOT,
        *(
            ROOT / "src" / folder
            for folder in ("", "rmsnorm", "rmsnorm/torch", "rmsnorm_lab", "rmsnorm_lab/experiments")
        ),
    ]
    paths = {said for said in re.findall(r"`([\w./]+)`", text) if said.endswith(("/", ".py", ".h", ".cpp"))}
    assert [path for path in sorted(paths) if not any((place / path).exists() for place in places)] == []


def test_index_lists_every_page():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages == set(re.findall(r"^(\w+)$", index, re.MULTILINE))


def anchors(page):
    """The headings of a page as GitHub names them in links."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def files_of(place):
    suffixes = (".md", ".py", ".h", ".cpp", ".html")
    found = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.suffix in suffixes)
    return [file for file in found if file != Path(__file__)]  # which has the words themselves


@pytest.mark.parametrize("place", PLAIN)
def test_english_is_plain(place):
    found = [
        f"{file.relative_to(ROOT)}:{number}: {match[0]!r} (say: {plain})"
        for file in files_of(ROOT / place)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        for banned, plain in BANNED.items()
        for match in [re.search(banned, line, re.IGNORECASE)]
        if match
    ]
    assert not found, "\n".join(found)
