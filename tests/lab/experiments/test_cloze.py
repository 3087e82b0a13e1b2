"""The reading set's two layouts, and every way in which the files can be wrong, and the stand-in."""

import hashlib
import os

import pytest

pytest.importorskip("torch")

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data import cloze, function_questions
from rmsnorm_lab.experiments.data.lines import digest


def read(folder):
    files, found = cloze.find(folder), hashlib.sha256()
    splits = {split: list(files.questions(split, found)) for split in cloze.FOLDERS}
    assert found.hexdigest() == digest((str(path.relative_to(files.root)), path.read_bytes()) for path in files.all())
    return splits


CONTEXT = "( @entity1 ) @entity0 met @entity3 in @entity1 . It rained ."
QUESTION = "@placeholder met @entity3 in the rain"
ENTITIES = "@entity0:Ada Lovelace\n@entity1:London\n@entity3:Charles : Babbage"


def record(url="http://example.com", context=CONTEXT, question=QUESTION, answer="@entity0", entities=ENTITIES):
    return f"{url}\n\n{context}\n\n{question}\n\n{answer}\n\n{entities}"


def deepmind(folder, **test):
    for split in cloze.FOLDERS.values():
        (folder / split).mkdir(parents=True)
        for number in range(3):
            (folder / split / f"{number:040x}.question").write_text(record(), encoding="utf-8")
    if test:
        (folder / "test" / f"{1:040x}.question").write_text(record(**test), encoding="utf-8")
    return folder


def danqi(folder, test=None):
    for name in cloze.FILES.values():
        (folder / name).write_text(f"{QUESTION}\n@entity0\n{CONTEXT}\n\n" * 3, encoding="utf-8")
    if test is not None:
        (folder / "test.txt").write_bytes(test)
    return folder


EXPECTED = cloze.Question(CONTEXT.lower().split(), QUESTION.split(), "@entity0")


@pytest.mark.parametrize("inside", ["", "questions", "cnn/questions"])
def test_deepminds_folders(tmp_path, inside):
    deepmind(tmp_path / inside)
    assert cloze.find(tmp_path).layout == "DeepMind"
    assert read(tmp_path) == {split: [EXPECTED] * 3 for split in ("train", "valid", "test")}


def test_danqis_files(tmp_path):
    assert cloze.find(danqi(tmp_path)).layout == "Danqi"
    assert read(tmp_path) == {split: [EXPECTED] * 3 for split in ("train", "valid", "test")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "@entity2"}, "the answer must be one of the entities listed; got '@entity2'"),
        ({"answer": "Ada"}, "the answer must be one of the entities listed; got 'Ada'"),
        ({"question": "who met @entity3"}, "the question must contain @placeholder"),
        ({"context": "nobody @entity1 ."}, "the answer @entity0 must occur in the context"),
        ({"entities": "@entity0 Ada"}, "must be lines @entityN:name; got '@entity0 Ada'"),
        ({"context": "one\n\ntwo"}, "must have 5 parts .*, not 6"),
    ],
)
def test_wrong_question_files_are_refused(tmp_path, change, message):
    deepmind(tmp_path, **change)
    with pytest.raises(UserError, match=rf"/test/{1:040x}.question.*{message}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (record().encode()[: -len(ENTITIES)], "must have 5 parts .*, not 4"),
        (b"", "must have 5 parts .*, not 1"),
        (record().encode().replace(b"met", b"m\xe9t"), "line 3: text must be UTF-8"),
    ],
)
def test_torn_question_files_are_refused(tmp_path, content, message):
    path = deepmind(tmp_path) / "validation" / f"{2:040x}.question"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"validation/{2:040x}.question.*{message}"):
        read(tmp_path)


GOOD = f"{QUESTION}\n@entity0\n{CONTEXT}\n\n".encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "test.txt must hold text; it is empty"),
        (GOOD.replace(b"in the rain", b"rain " * 400_000), "line 1: a question must have at most 1,000 words"),
        (GOOD + b"a question @placeholder\n@entity0\n", "test.txt', line 5: .*the file ends in it"),
        (GOOD[:-1] + GOOD, "test.txt', line 1: .*its fourth line is not blank"),
        (GOOD + GOOD.replace(b"@placeholder", b"who"), "test.txt', line 5: the question must contain @placeholder"),
        (GOOD + GOOD.replace(b"\n@entity0\n", b"\nAda\n"), "test.txt', line 5: the answer must be an entity marker"),
        (
            GOOD + GOOD.replace(b"\n@entity0\n", b"\n@entity9\n"),
            "line 5: the answer @entity9 must occur in the context",
        ),
        (GOOD.replace(b"rain", b"r\xffin"), "test.txt, line 1: text must be UTF-8"),
    ],
)
def test_wrong_text_files_are_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read(danqi(tmp_path, content))


def test_folders_that_cannot_be_read_and_fifos_are_refused(tmp_path, monkeypatch):
    deepmind(tmp_path)
    path = tmp_path / "validation" / f"{1:040x}.question"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"1\.question must be a regular file; it is a FIFO"):
        read(tmp_path)
    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(UserError, match=r"training must be readable; it is not: Permission denied"):
        read(tmp_path)


def denied(path):
    raise PermissionError(13, "Permission denied", str(path))


def test_the_last_record_may_lack_its_blank_line_and_line_feed(tmp_path):
    assert read(danqi(tmp_path, GOOD + GOOD.rstrip(b"\n")))["test"] == [EXPECTED] * 2


def test_missing_parts_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"must hold training, validation, test .*cnn_dailymail of Hugging Face"):
        read(tmp_path)
    danqi(tmp_path)
    (tmp_path / "dev.txt").unlink()
    with pytest.raises(UserError, match=r"lacks dev\.txt"):
        read(tmp_path)
    deepmind(tmp_path / "cnn/questions")
    for file in (tmp_path / "cnn/questions/validation").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"validation' must hold .question files; it holds none"):
        read(tmp_path)
    deepmind(tmp_path / "dailymail/questions")
    with pytest.raises(UserError, match="holds several"):
        read(tmp_path)


def test_the_most_relevant_sentences_stay_in_order():
    context = ["x", "one", ".", "a", "b", ".", "y", "two", ".", "a", "c", "d", ".", "tail", "a"]
    assert cloze.most_relevant(context, ["a", "b", "c", "d"], 2) == ["a", "b", ".", "a", "c", "d", "."]
    assert cloze.most_relevant(context, ["nothing"], 2) == ["x", "one", ".", "a", "b", "."]
    assert cloze.most_relevant(context, ["a"], 9) == context


SOURCE = '''
class Tree:
    def insert(self, node, where=0):
        """Insert node where it belongs. Return the depth
        of node, or nothing.

        Unrelated words only.
        """
        depth = self.find(node, f"{where}")
        self.items.append(node)  # node in a comment
        return depth + 1 if node else None

    def bare(self, node):
        return node
'''


def test_questions_are_made_of_docstrings_and_code(tmp_path):
    function_questions.write(tmp_path, {"tree.py": SOURCE})
    files = list(tmp_path.rglob("*.question"))
    found = [cloze._deepmind(path.read_text(encoding="utf-8"), path) for path in files]
    names = ["insert", "self", "node", "where", "depth", "find", "items", "append"]
    marker = {name: f"@entity{i}" for i, name in enumerate(names)}
    asked = {(tuple(each.question), each.answer) for each in found}

    def said(text, masked):
        words = [cloze.PLACEHOLDER if w == masked else marker.get(w, w.lower()) for w in text.split()]
        return tuple(words), marker[masked]

    first, second = "Insert node where it belongs .", "Return the depth of node , or nothing ."
    assert asked == {said(first, "node"), said(first, "where"), said(second, "depth"), said(second, "node")}
    for each in found:
        assert each.context[:4] == ["def", marker["insert"], marker["self"], marker["node"]]
        assert "comment" not in each.context
        assert each.context[-7:] == [marker["depth"], "+", "number", "if", marker["node"], "else", "none"] or (
            each.context[-8:-1] == [marker["depth"], "+", "number", "if", marker["node"], "else", "none"]
        )
    assert len({path.parent for path in files}) == 1  # one source file, one split
