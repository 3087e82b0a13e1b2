"""What is run: complete, frozen settings. Two runs are the same run exactly if these are equal.

Nothing heavy is imported here, so that the command line can show the defaults.
"""

from dataclasses import dataclass

NORMS = ("none", "layer", "rms", "prms")
LABELS = {"none": "no norm", "layer": "LayerNorm", "rms": "RMSNorm", "prms": "pRMSNorm"}
KERNELS = ("rmsnorm", "torch")
PRECISIONS = ("32-true", "bf16-mixed")

EPS = 1e-5
"""Inside the root, the same for every normaliser (torch's own defaults differ between LayerNorm and RMSNorm)."""
P = 0.0625
"""The paper's choice for pRMSNorm: the RMS of the first 6.25 % of the elements."""


@dataclass(frozen=True)
class ModelConfig:
    """The decoder-only transformer of models/transformer.py."""

    width: int = 128
    layers: int = 3
    heads: int = 4
    feed_forward: int = 352
    context: int = 64
    qk_norm: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """AdamW with linear warm-up and cosine decay; the same learning rate for every normaliser."""

    steps: int = 280
    batch: int = 16
    learning_rate: float = 4e-3
    final_learning_rate: float = 4e-4
    warmup_steps: int = 20
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    evaluations: int = 8
    held_out_windows: int = 256


@dataclass(frozen=True)
class TimingConfig:
    """One training step of each normaliser a round, in an order drawn anew for each round."""

    warmup_rounds: int = 10
    rounds: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Settings:
    """Everything but the normaliser and the seed."""

    kernels: str
    device: str
    precision: str
    model: ModelConfig
    train: TrainConfig
    timing: TimingConfig


def language(
    *,
    steps: int = TrainConfig.steps,
    kernels: str = "rmsnorm",
    device: str = "cpu",
    precision: str = "32-true",
    qk_norm: bool = False,
) -> Settings:
    """The comparison on text: 0.66 million parameters, 1024 characters a step, under four minutes on two cores."""
    return Settings(kernels, device, precision, ModelConfig(qk_norm=qk_norm), TrainConfig(steps=steps), TimingConfig())
