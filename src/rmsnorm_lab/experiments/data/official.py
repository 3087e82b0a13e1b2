"""Whether data are the paper's, judged by the description in a record.

CIFAR-10's files have published hashes. The other sets are recognised by their sizes: sets that were shortened, filtered
or made by the user have other sizes.
"""

from rmsnorm_lab.experiments.record import Content

FILES = "files"
"""The key in a source's details. It is there only if the files are not the official ones."""
OTHER_FILES = "not the official ones"

INPUTS = "inputs"
"""The key in a source's details. It is there only if the inputs are DRAWN (data/drawn.py)."""
DRAWN = "drawn at random"

_SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "images": {"test images": (10_000,)},
    "retrieval": {"train images": (113_287,), "valid images": (5000,), "test images": (5000,)},
    "reading": {"train questions": (380_298,), "valid questions": (3924,), "test questions": (3198,)},  # CNN's
    "translation": {"newstest2014 pairs": (3003, 2737)},  # the full set, and the part that was scored in 2014
}
_SIZES["transformer"] = _SIZES["translation"]
_WMT14_PAIRS = 3_900_000
"""WMT14 has 4.5 million; published copies are filtered by length."""


def is_drawn(source: Content) -> bool:
    """Whether the inputs are random numbers in the official data's shape."""
    return source.details.get(INPUTS) == DRAWN


def is_official(task: str, source: Content) -> bool:
    """Whether ``source`` is the data of the paper's figures for ``task``."""
    details = source.details
    if source.stand_in or task not in _SIZES or details.get(FILES) == OTHER_FILES:
        return False
    if "direction" in details and (details["direction"] != "en-de" or details.get("train pairs", 0) < _WMT14_PAIRS):
        return False
    return all(details.get(name) in sizes for name, sizes in _SIZES[task].items())
