"""The stand-in for images: scikit-learn's 1,797 handwritten digits of 8 × 8 grey pixels, part of its wheel."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rmsnorm_lab.experiments.data.lines import digest

Array = np.ndarray[Any, Any]
TEST = 600
ENLARGED = 3
"""Each pixel becomes 3 × 3 pixels. After two poolings and a convolution without padding 4 × 4 positions are left for
statistics. With 2 × 2 positions, the 12.5 % of pRMSNorm would be one position, and the network would learn almost
nothing."""


@dataclass(frozen=True)
class Images:
    """float32 (N, channels, height, width) with values between about −1 and 1, and int64 labels from 0 on."""

    train: Array
    train_labels: Array
    test: Array
    test_labels: Array
    classes: int
    sha256: str
    official: bool = True
    """Whether the files are the published ones."""


def digits() -> tuple[Array, Array, str]:
    """(grey values 0 to 16 as (N, 8, 8), labels, "scikit-learn VERSION load_digits")."""
    import sklearn
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images, found.target.astype(np.int64), f"scikit-learn {sklearn.__version__} load_digits"


def load() -> tuple[Images, str]:
    """The digits in a fixed order, with the last 600 as the test set, and the name of the source."""
    grey, labels, name = digits()
    order = np.random.default_rng(0).permutation(len(grey))
    pixels = ((grey[order] - 8) / 8).astype(np.float32)[:, None]
    pixels = pixels.repeat(ENLARGED, axis=2).repeat(ENLARGED, axis=3)
    labels = labels[order]
    sha256 = digest([("images", grey.tobytes()), ("labels", labels.tobytes())])
    return Images(pixels[:-TEST], labels[:-TEST], pixels[-TEST:], labels[-TEST:], 10, sha256), name
