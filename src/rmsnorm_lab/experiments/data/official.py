"""Whether data are those that the paper's figures were taken on, as far as a record's description of them tells.

Only CIFAR-10 has published hashes of the files that a user has. The other sets are known by their sizes: what was cut,
filtered or made by oneself differs in them.
"""

from rmsnorm_lab.experiments.record import Content

FILES = "files"
"""The field of a source's details that is there only where the files are not what they are called."""
OTHER_FILES = "not the official ones"

_SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "images": {"test images": (10_000,)},
    "retrieval": {"train images": (113_287,), "valid images": (5000,), "test images": (5000,)},
    "reading": {"train questions": (380_298,), "valid questions": (3924,), "test questions": (3198,)},  # CNN's
    "translation": {"newstest2014 pairs": (3003, 2737)},  # all, and those that were scored in 2014
}
_SIZES["transformer"] = _SIZES["translation"]
_WMT14_PAIRS = 3_900_000
"""Of 4.5 million; what is handed around is filtered by length."""


def is_official(task: str, source: Content) -> bool:
    """Whether ``source`` is the data of the paper's figures for ``task``."""
    details = source.details
    if source.stand_in or task not in _SIZES or details.get(FILES) == OTHER_FILES:
        return False
    if "direction" in details and (details["direction"] != "en-de" or details.get("train pairs", 0) < _WMT14_PAIRS):
        return False
    return all(details.get(name) in sizes for name, sizes in _SIZES[task].items())
