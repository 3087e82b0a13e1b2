"""The figures of the paper (Zhang & Sennrich 2019, Tables 2 to 9), which tables show beside those measured here.

Quality by normaliser and metric key as the task has them; time saved against LayerNorm, in percent, as the paper states
it, from code that wrote every norm in framework operators; seconds as in the tables, the standard deviation left out.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """The paper's figures for one task."""

    where: str
    """Data, framework and hardware."""
    quality: dict[str, dict[str, float]] = field(default_factory=dict)
    """Normaliser -> metric -> figure."""
    saved: dict[str, str] = field(default_factory=dict)
    """Normaliser -> percent of LayerNorm's time."""
    seconds: dict[str, str] = field(default_factory=dict)
    """Normaliser -> seconds of ``seconds_of``."""
    seconds_of: str = ""


def label(official: bool) -> str:
    """The label of the paper's quality. Its times depend on models and sizes, not on the data's content."""
    return "paper" if official else "paper, other data"


CAVEAT = "other data than here, so its quality cannot be compared with these figures"
"""Of the paper's figures beside a stand-in or the user's own data."""


PUBLISHED = {
    "translation": Published(
        where="WMT14 En-De, newstest2014, RNNSearch (quality: TensorFlow; L2 too; WeightNorm: Theano); "
        "time saved in TensorFlow, Theano, PyTorch on a TITAN X (Pascal)",
        quality={
            "none": {"bleu": 21.7},
            "l2": {"bleu": 20.7},
            "weight": {"bleu": 21.7},
            "layer": {"bleu": 22.6},
            "rms": {"bleu": 22.4},
            "prms": {"bleu": 22.6},
        },
        saved={"rms": "24.7, 34.0, 11.0", "prms": "25.9, 33.4, 12.0"},
        seconds={
            "none": "399, 596, 427",
            "l2": "482",
            "layer": "665, 988, 857",
            "rms": "501, 652, 763",
            "prms": "493, 658, 754",
        },
        seconds_of="1,000 steps, in TensorFlow, Theano and PyTorch (L2-Norm: TensorFlow)",
    ),
    "transformer": Published(
        where="WMT14 En-De, newstest2014, Transformer base on a V100; no norm diverges",
        quality={"layer": {"bleu": 26.6}, "rms": {"bleu": 26.8}, "prms": {"bleu": 26.5}},
        saved={"rms": "6.9", "prms": "9.3"},
        seconds={"none": "210", "layer": "248", "rms": "231", "prms": "225"},
        seconds_of="1,000 steps",
    ),
    "reading": Published(
        where="CNN/Daily Mail, attentive reader, Theano on a TITAN X (Pascal); quality is shown as a curve alone",
        saved={"none": "19.6", "batch": "12.0", "batch-everywhere": "11.2", "rms": "15.1", "prms": "15.8"},
        seconds={
            "none": "315",
            "batch": "345",
            "batch-everywhere": "348",
            "layer": "392",
            "rms": "333",
            "prms": "330",
        },
        seconds_of="100 steps",
    ),
    "retrieval": Published(
        where="COCO, order-embeddings, Theano on a TITAN X (Pascal)",
        quality={
            norm: dict(
                zip(
                    (
                        *("caption_r1", "caption_r5", "caption_r10", "caption_mean_rank"),
                        *("image_r1", "image_r5", "image_r10", "image_mean_rank"),
                    ),
                    figures,
                    strict=True,
                )
            )
            for norm, figures in {
                "none": (45.8, 79.7, 88.8, 5.4, 37.6, 73.6, 85.8, 7.7),
                "layer": (47.9, 79.5, 89.2, 5.3, 38.4, 74.6, 86.7, 7.5),
                "rms": (48.7, 79.7, 89.5, 5.3, 39.0, 74.8, 86.3, 7.5),
                "prms": (46.8, 79.8, 90.3, 5.2, 39.0, 74.5, 86.3, 7.4),
            }.items()
        },
        saved={"rms": "40.8", "prms": "63.9"},
        seconds={"none": "2.11", "layer": "12.02", "rms": "7.12", "prms": "4.34"},
        seconds_of="100 steps",
    ),
    "images": Published(
        where="CIFAR-10, ConvPool-CNN-C, Theano on an RTX 2080 Ti",
        quality={
            norm: {"test_error": error}
            for norm, error in {
                "none": 8.96,
                "batch": 8.25,
                "weight": 8.28,
                "layer": 10.49,
                "rms": 8.83,
                "prms": 10.37,
            }.items()
        },
        saved={"rms": "20.5", "prms": "23.1"},
        seconds={"none": "21", "batch": "38", "weight": "23", "layer": "39", "rms": "31", "prms": "30"},
        seconds_of="an epoch, 500 steps",
    ),
}
"""By task; ``language`` is not of the paper."""

HIDDEN_STATES = {
    "none": {"mean": (-2.60, -1.19, -1.43, -1.53, -1.60), "sd": (7.35, 2.33, 2.61, 2.73, 3.04)},
    "layer": {"mean": (-0.43, -0.48, -0.50, -0.50, -0.51), "sd": (1.19, 1.51, 1.51, 1.51, 1.51)},
    "rms": {"mean": (-0.40, -0.60, -0.69, -0.74, -0.73), "sd": (1.27, 1.51, 1.50, 1.49, 1.50)},
}
"""Table 5: the decoder's hidden-to-hidden activations at the target's words 1 to 4 and at all, newstest2013."""
