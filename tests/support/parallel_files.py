"""Files of parallel text in its official forms."""

from pathlib import Path

from rmsnorm_lab.experiments.data.corpus import Corpus
from rmsnorm_lab.experiments.data.loading import Loading
from rmsnorm_lab.experiments.data.parallel import find

EN = ["A man walks.", "Two dogs\u2028run home.", "It is 25 degrees & sunny."]
DE = ["Ein Mann geht.", "Zwei Hunde laufen heim.", "Es ist 25 Grad und schön."]


def write(folder: Path, name: str, lines: list[str]) -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def write_sgm(folder: Path, name: str, lines: list[str], kind: str = "srcset") -> Path:
    segments = [f'<seg id="{number}">{line}</seg>' for number, line in enumerate(lines, start=1)]
    head = [f'<{kind} setid="newstest2014" srclang="any">', '<doc sysid="ref" docid="a/1" genre="news" origlang="de">']
    return write(folder, name, [*head, "<p>", *segments, "</p>", "</doc>", f"</{kind}>"])


def read_corpus(folder: Path, source: str = "en", target: str = "de") -> Corpus:
    return find(folder, source, target).read(Loading("test"))
