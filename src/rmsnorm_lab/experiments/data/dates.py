"""The stand-in for parallel text: dates and times as Babel (Unicode's CLDR) writes them in two languages.

``Monday, November 23, 2026 at 5:08 PM`` -> ``Montag, 23. November 2026 um 17:08``. Copying is not enough: the words,
their order and the clock (12 or 24 hours) differ. Rules generate the text and each sentence has one right answer, so
exact match says more than BLEU. Its BLEU is not comparable with that of any other set.

Each day belongs to one split. No test day occurs in training in any form.
"""

import datetime
import random
from typing import Literal, NamedTuple

import babel
from babel.core import get_cldr_version
from babel.dates import format_date, format_time, get_datetime_format

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.corpus import Corpus, Pairs

FIRST, LAST = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)
Style = Literal["full", "long", "medium"]
STYLES: tuple[Style, ...] = ("full", "long", "medium")
SEED = 20191016  # of the data; training seeds do not change them


class Moment(NamedTuple):
    """The date, and perhaps the time, that a sentence states."""

    day: datetime.date
    time: datetime.time | None
    style: Style


def name() -> str:
    """The source's name, with the versions that decide the text."""
    return f"Babel {babel.__version__} dates (CLDR {get_cldr_version()})"


def written(moment: Moment, locale: str) -> str:
    """The sentence in one locale."""
    date = format_date(moment.day, moment.style, locale=locale)
    if moment.time is None:
        return date
    time = format_time(moment.time, "short", locale=locale)
    return str(get_datetime_format(moment.style, locale=locale)).replace("'", "").format(time, date)


def corpus(train: int, valid: int, test: int, source: str = "en", target: str = "de") -> Corpus:
    """Three sets with these numbers of pairs. Every pair has a day of its own.

    Raises:
        UserError: Babel does not know a locale, or more pairs are asked for than there are days.
    """
    for locale in (source, target):
        try:
            babel.Locale.parse(locale)
        except (ValueError, babel.UnknownLocaleError):
            raise UserError(f"the languages must be locales that Babel knows; got {locale!r}.") from None
    days = (LAST - FIRST).days + 1
    if train + valid + test > days:
        raise UserError(f"the stand-in has {days:,} days; {train + valid + test:,} pairs are too many. Ask for fewer.")
    draw = random.Random(SEED)
    moments = [
        Moment(
            FIRST + datetime.timedelta(days=day),
            datetime.time(draw.randrange(24), draw.randrange(60)) if draw.random() < 0.5 else None,
            draw.choice(STYLES),
        )
        for day in draw.sample(range(days), train + valid + test)
    ]
    pairs = [(written(moment, source), written(moment, target)) for moment in moments]

    def part(name: str, start: int, stop: int) -> Pairs[list[str]]:
        return Pairs(name, [pair[0] for pair in pairs[start:stop]], [pair[1] for pair in pairs[start:stop]])

    return Corpus(
        part("train", 0, train),
        part("valid", train, train + valid),
        (part("test", train + valid, train + valid + test),),
    )
