"""One table of results, shown in three ways: in a terminal (rich), as Markdown and as HTML.

The first column names the rows, the others hold figures and are aligned right. Headings, labels and cells are plain
text in all three: none of it is markup.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import rich.table
    from markupsafe import Markup
    from rich.console import Console


def signed(value: float, form: str) -> str:
    """The number with a minus sign that is as wide as a digit, and none where it is shown as 0."""
    text = f"{value:{form}}"
    return (text.removeprefix("-") if float(text) == 0 else text).replace("-", "\N{MINUS SIGN}")


def count(number: int, thing: str) -> str:
    """'1 thread', '2 threads'."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


@dataclass(frozen=True)
class Cell:
    """One figure with the small print beneath it, such as its confidence interval."""

    text: str
    below: tuple[str, ...] = ()
    kind: str = ""
    """Classes of the HTML cell."""


@dataclass(frozen=True)
class Row:
    """A label and its figures."""

    label: str
    cells: Sequence[Cell | str]
    style: Literal["", "bold", "dim"] = ""
    """In a terminal."""
    ends_section: bool = False
    """Whether a terminal leaves a line free after it."""


@dataclass(frozen=True)
class Table:
    """Rows under headings, the first of which is that of the labels."""

    headings: Sequence[str]
    rows: Sequence[Row]
    title: str = ""
    note: str = ""
    """Lines below the table."""
    narrow: bool = False
    """Whether columns are one space apart in a terminal, not three."""

    def show(self, console: "Console") -> None:
        """Print title, table and note. Title and note are not wrapped: a pipe gets them as one line each."""
        if self.title:
            console.print(self.title, style="bold", highlight=False, markup=False, soft_wrap=True)
        console.print(self, highlight=False)
        if self.note:
            console.print(self.note, highlight=False, markup=False, soft_wrap=True)

    def __rich__(self) -> "rich.table.Table":
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as Grid
        from rich.text import Text

        def text(cell: Cell | str) -> Text:
            cell = _cell(cell)
            return Text.assemble(cell.text, *((f"\n{line}", "dim") for line in cell.below))

        grid = Grid(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0 if self.narrow else 1))
        for place, heading in enumerate(self.headings):
            grid.add_column(Text(heading), justify="right" if place else "left", no_wrap=True)
        for row in self.rows:
            cells = (text(cell) for cell in row.cells)
            grid.add_row(Text(row.label), *cells, style=row.style, end_section=row.ends_section)
        return grid

    def markdown(self) -> str:
        """The table as GitHub's Markdown has it; the title precedes it in bold."""
        lines = [self.headings, ["---", *["---:"] * (len(self.headings) - 1)]]
        for row in self.rows:
            lines.append([row.label, *(" ".join((cell.text, *cell.below)) for cell in map(_cell, row.cells))])
        title = [f"**{self.title}**", ""] if self.title else []
        table = ("| " + " | ".join(map(_markdown_text, line)) + " |" for line in lines)
        note = ["", self.note] if self.note else []
        return "\n".join([*title, *table, *note])

    def html(self, cards: bool = False) -> "Markup":
        """The ``<table>`` element, without title and note. A label that is ``Markup`` already is not escaped.

        Args:
            cards: each figure also carries its heading, so that a style sheet can show every row as a list.
        """
        from markupsafe import Markup

        heading, label = Markup('<th scope="col">{}</th>'), Markup('<th scope="row">{}</th>')
        small, line = Markup('<span class="below">{}</span>'), Markup("<tr>{}</tr>")

        def figure(cell: Cell | str, heading: str) -> Markup:
            cell = _cell(cell)
            opening = Markup(' class="{}"').format(cell.kind) if cell.kind else Markup()
            content = Markup("{}{}").format(cell.text, Markup().join(map(small.format, cell.below)))
            if cards:
                opening += Markup(' data-label="{}"').format(heading)
                content = Markup("<span>{}</span>").format(content)
            return Markup("<td{}>{}</td>").format(opening, content)

        def row(row: Row) -> Markup:
            return line.format(label.format(row.label) + Markup().join(map(figure, row.cells, self.headings[1:])))

        table = Markup('<table class="cards">' if cards else "<table>")
        head = line.format(Markup().join(map(heading.format, self.headings)))
        body = Markup("\n").join(map(row, self.rows))
        return table + Markup("\n<thead>{}</thead>\n<tbody>\n{}\n</tbody>\n</table>").format(head, body)


def _cell(cell: Cell | str) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell


def _markdown_text(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<").replace("\n", " ")
