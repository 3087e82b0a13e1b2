"""The stand-in for parallel text: dates as CLDR writes them."""

import re

import pytest

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data import dates

MONTHS = [
    "Januar",
    "Februar",
    "März",
    "April",
    "Mai",
    "Juni",
    "Juli",
    "August",
    "September",
    "Oktober",
    "November",
    "Dezember",
]


def day(german: str) -> tuple[int, int, int]:
    """Day, month and year of a German date in any style."""
    found = re.search(r"(\d+)\. ?(\d+|\w+)[. ](\d{4})", german)
    assert found, german
    return int(found[1]), MONTHS.index(found[2]) + 1 if found[2] in MONTHS else int(found[2]), int(found[3])


def test_dates_are_held_out() -> None:
    corpus = dates.corpus(train=3000, valid=100, test=200)
    parts = [{day(line) for line in pairs.target} for pairs in (corpus.train, corpus.valid, *corpus.tests)]
    assert [len(part) for part in parts] == [3000, 100, 200]
    assert len(set.union(*parts)) == 3300
    assert corpus == dates.corpus(train=3000, valid=100, test=200)
    with pytest.raises(UserError, match="73,049 days; 73,050 pairs are too many"):
        dates.corpus(73_000, 25, 25)


@pytest.mark.parametrize(
    ("locale", "style", "expected"),
    [
        ("en", "full", "Monday, November 23, 2026, 5:08\u202fPM"),
        ("de", "full", "Montag, 23. November 2026, 17:08"),
        ("de", "medium", "23.11.2026, 17:08"),
        ("fr", "long", "23 novembre 2026, 17:08"),
    ],
)
def test_dates_as_cldr_writes_them(locale: str, style: str, expected: str) -> None:
    moment = dates.Moment(dates.datetime.date(2026, 11, 23), dates.datetime.time(17, 8), style)
    written = dates.written(moment, locale)
    # CLDR's punctuation changes between versions: the test compares words, numbers and their order.
    assert [*filter(None, map(str.strip, written.replace(",", " ").split()))] == expected.replace(",", " ").split()


def test_unknown_locale() -> None:
    with pytest.raises(UserError, match="locales that Babel knows; got 'xx'"):
        dates.corpus(10, 1, 1, target="xx")
