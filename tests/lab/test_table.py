"""One table, three ways: what each of them shows, and that no text in it is markup."""

import io

import pytest

from rmsnorm_lab.table import Cell, Row, Table

TABLE = Table(
    headings=["norm", "test\nerror, %", "[red]saved, %"],
    rows=[
        Row("LayerNorm", ["10.49", Cell("–")], ends_section=True),
        Row("<b>|RMS|", [Cell("8.83", ("[8.7, 8.9]", "paper & 8.8"), kind="yes"), "20.5"], style="bold"),
    ],
    title="Quality [bold]of[/bold] both",
    note="a note of [5] words",
)


def test_in_a_terminal():
    console = pytest.importorskip("rich.console").Console(width=40, file=io.StringIO())
    TABLE.show(console)
    shown = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert shown == [
        "Quality [bold]of[/bold] both",
        "                   test",
        "norm           error, %   [red]saved, %",
        "─" * 39,
        "LayerNorm         10.49               –",
        "",
        "<b>|RMS|           8.83            20.5",
        "             [8.7, 8.9]",
        "            paper & 8.8",
        "a note of [5] words",
    ]


def test_a_title_is_one_line_however_narrow_the_console():
    console = pytest.importorskip("rich.console").Console(width=20, file=io.StringIO())
    Table(["norm"], [Row("rms", [])], title="words " * 10 + "end").show(console)
    assert console.file.getvalue().startswith("words " * 10 + "end\n")


def test_a_narrow_table_has_one_space_between_columns():
    console = pytest.importorskip("rich.console").Console(width=40, file=io.StringIO())
    Table(["norm", "a", "b"], [Row("rms", ["1.0", "2.0"])], narrow=True).show(console)
    assert "rms  1.0 2.0" in console.file.getvalue()


def test_as_markdown():
    assert TABLE.markdown().splitlines() == [
        "**Quality [bold]of[/bold] both**",
        "",
        "| norm | test error, % | [red]saved, % |",
        "| --- | ---: | ---: |",
        "| LayerNorm | 10.49 | – |",
        "| \\<b>\\|RMS\\| | 8.83 [8.7, 8.9] paper & 8.8 | 20.5 |",
        "",
        "a note of [5] words",
    ]


def test_as_html():
    markupsafe = pytest.importorskip("markupsafe")
    assert TABLE.html() == "\n".join(
        [
            "<table>",
            '<thead><tr><th scope="col">norm</th><th scope="col">test\nerror, %</th>'
            '<th scope="col">[red]saved, %</th></tr></thead>',
            "<tbody>",
            '<tr><th scope="row">LayerNorm</th><td>10.49</td><td>–</td></tr>',
            '<tr><th scope="row">&lt;b&gt;|RMS|</th><td class="yes">8.83<span class="below">[8.7, 8.9]</span>'
            '<span class="below">paper &amp; 8.8</span></td><td>20.5</td></tr>',
            "</tbody>",
            "</table>",
        ]
    )
    link = markupsafe.Markup('<a href="#x">x</a>')
    assert link in Table(["norm"], [Row(link, [])]).html()
