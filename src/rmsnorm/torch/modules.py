"""The modules: they hold parameters; :mod:`~rmsnorm.torch.functional` holds the mathematics.

``torch.jit.script`` cannot compile the functions, and calls the operators that they are in compiled graphs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rmsnorm.spec import check_flag, check_heads, check_shape, check_spec
from rmsnorm.torch import functional
from rmsnorm.torch.gated import GatedSpec, rms_norm_gated


class RMSNorm(nn.Module):
    r"""RMSNorm, and with ``p`` < 1 pRMSNorm, over the last dimensions: :func:`rmsnorm.torch.rms_norm` with a gain.

    .. math:: y = \frac{x}{\mathrm{RMS}_k(x)} \odot g + b, \qquad
              \mathrm{RMS}_k(x) = \sqrt{\tfrac{1}{k} \textstyle\sum_{i \le k} x_i^2 + eps}, \quad k = \lceil n p \rceil

    Takes the place of :class:`torch.nn.RMSNorm`: the same positional arguments and the same ``state_dict`` key
    ``weight``.

    Args:
        normalized_shape: the last dimensions of the input.
        eps: inside the root, finite and not negative; None: machine epsilon of the computation dtype.
        elementwise_affine: whether there is a gain, 1 at the start (0 if ``zero_centered``: the gain is 1 + weight).
        device, dtype: of the parameters, which need not be the input's.
        bias: whether there is a bias too, 0 at the start, under the key ``bias``.
        heads: None, or the extent of the input's dimension before the normalised ones: gain and bias then have the
            shape (heads, \*normalized_shape), one for each head.
        p, zero_centered, casting: see :func:`rmsnorm.torch.rms_norm`, also for the dtype policy.

    Raises:
        ValueError, TypeError: what must hold, what was received; a bias without ``elementwise_affine`` too.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), §3.
    """

    __constants__ = ("normalized_shape", "eps", "elementwise_affine", "p", "zero_centered", "casting", "heads")
    normalized_shape: tuple[int, ...]
    eps: float | None
    elementwise_affine: bool
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = False,
        p: float = 1.0,
        zero_centered: bool = False,
        casting: str = "once",
        heads: int | None = None,
    ) -> None:
        super().__init__()
        spec = check_spec(normalized_shape, eps, p, zero_centered, casting)
        self.normalized_shape = spec.normalized_shape
        self.eps = spec.eps
        self.elementwise_affine = check_flag("elementwise_affine", elementwise_affine)
        self.p = spec.p
        self.zero_centered = spec.zero_centered
        self.casting = spec.casting
        self.heads = check_heads(heads)
        shape = spec.normalized_shape if heads is None else (heads, *spec.normalized_shape)
        if check_flag("bias", bias) and not elementwise_affine:
            raise ValueError("bias=True needs elementwise_affine=True, got False; leave out the bias or allow the gain")
        for name, wanted in (("weight", elementwise_affine), ("bias", bias)):
            made = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if wanted else None
            self.register_parameter(name, made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gain 1 and bias 0."""
        if self.weight is not None:
            nn.init.constant_(self.weight, 0.0 if self.zero_centered else 1.0)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return torch.ops.rmsnorm.rms_norm(
                input,
                self.normalized_shape,
                self.weight,
                self.bias,
                self.eps,
                self.p,
                self.zero_centered,
                self.casting,
            )
        return functional.rms_norm(
            input,
            self.normalized_shape,
            self.weight,
            self.eps,
            bias=self.bias,
            p=self.p,
            zero_centered=self.zero_centered,
            casting=self.casting,
        )

    def extra_repr(self) -> str:
        said = [f"{self.normalized_shape}", f"eps={self.eps}", f"elementwise_affine={self.elementwise_affine}"]
        said += [f"{name}={value}" for name, value, usual in self._unusual() if value != usual]
        return ", ".join(said)

    def _unusual(self) -> list[tuple[str, object, object]]:
        return [
            ("bias", self.bias is not None, False),
            ("p", self.p, 1.0),
            ("zero_centered", self.zero_centered, False),
            ("casting", self.casting, "once"),
            ("heads", self.heads, None),
        ]


class RMSNormGated(nn.Module):
    r"""RMSNorm with a SiLU gate, as Mamba-2 has it: :func:`rmsnorm.torch.rms_norm_gated` with a gain.

    .. math:: y = \mathrm{rms\_norm}(x \odot \mathrm{silu}(z)) \odot g \quad\text{or}\quad
              y = \mathrm{rms\_norm}(x) \odot g \odot \mathrm{silu}(z)

    Args:
        normalized_shape: the last dimensions of the input.
        eps: inside the root; None: machine epsilon of the computation dtype.
        device, dtype: of the gain ``weight``, 1 at the start, which need not be the input's.
        norm_before_gate, groups, p: see :func:`rmsnorm.torch.rms_norm_gated`, also for the dtype policy.

    Raises:
        ValueError, TypeError: what must hold, what was received.

    Source: Dao & Gu, "Transformers are SSMs" (2024).
    """

    __constants__ = ("normalized_shape", "eps", "norm_before_gate", "groups", "p")
    normalized_shape: tuple[int, ...]
    eps: float | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        norm_before_gate: bool = False,
        groups: int = 1,
        p: float = 1.0,
    ) -> None:
        super().__init__()
        spec = GatedSpec.of(normalized_shape, eps, norm_before_gate, groups, p)
        self.normalized_shape = spec.shape
        self.eps, self.p = spec.group.eps, spec.group.p
        self.norm_before_gate, self.groups = spec.norm_first, spec.groups
        self.weight = nn.Parameter(torch.empty(spec.shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gain 1."""
        nn.init.ones_(self.weight)

    def forward(self, input: Tensor, gate: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return torch.ops.rmsnorm.rms_norm_gated(
                input,
                gate,
                self.normalized_shape,
                self.weight,
                self.eps,
                self.norm_before_gate,
                self.groups,
                self.p,
            )
        return rms_norm_gated(
            input,
            gate,
            self.normalized_shape,
            self.weight,
            self.eps,
            norm_before_gate=self.norm_before_gate,
            groups=self.groups,
            p=self.p,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, norm_before_gate={self.norm_before_gate}, "
            f"groups={self.groups}, p={self.p}"
        )


class LayerNorm(nn.Module):
    """LayerNorm in this package's kernels, for comparisons that leave only the algorithm to differ.

    Takes the place of :class:`torch.nn.LayerNorm`: the same arguments and ``state_dict``; and ``heads``, as
    :class:`RMSNorm` has it. The equation, the dtype policy and what is raised: :func:`rmsnorm.torch.layer_norm`.
    """

    __constants__ = ("normalized_shape", "eps", "elementwise_affine", "heads")
    normalized_shape: tuple[int, ...]
    eps: float | None
    elementwise_affine: bool
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        heads: int | None = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = check_shape(normalized_shape)
        self.heads = check_heads(heads)
        self.eps = check_spec(normalized_shape, eps).eps
        self.elementwise_affine = check_flag("elementwise_affine", elementwise_affine)
        bias = check_flag("bias", bias) and self.elementwise_affine
        shape = self.normalized_shape if heads is None else (heads, *self.normalized_shape)
        for name, wanted in (("weight", elementwise_affine), ("bias", bias)):
            made = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if wanted else None
            self.register_parameter(name, made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gain 1 and bias 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return torch.ops.rmsnorm.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        return functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        heads = "" if self.heads is None else f", heads={self.heads}"
        said = f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        return f"{said}, bias={self.bias is not None}{heads}"
