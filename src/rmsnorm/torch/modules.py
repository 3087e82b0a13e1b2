"""The modules: they hold parameters; :mod:`~rmsnorm.torch.functional` holds the mathematics.

``torch.jit.script`` cannot compile the functions, and calls the operators that they are in compiled graphs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rmsnorm.spec import check_flag, check_heads, check_shape, check_spec
from rmsnorm.torch import functional
from rmsnorm.torch.gated.spec import check_gated_spec


class RMSNorm(nn.RMSNorm):
    r"""RMSNorm over the last dimensions, with a gain; with ``p`` < 1, pRMSNorm.

    .. math:: y = \frac{x}{\mathrm{RMS}_k(x)} \odot g + b, \qquad
              \mathrm{RMS}_k(x) = \sqrt{\tfrac{1}{k} \textstyle\sum_{i \le k} x_i^2 + \mathrm{eps}}, \quad
              k = \lceil n p \rceil

    Replaces :class:`torch.nn.RMSNorm`, of which it is a subclass: the same positional arguments and the same
    ``state_dict`` key ``weight``. The module calls :func:`rmsnorm.torch.rms_norm`.

    Args:
        normalized_shape: the last dimensions of the input, of n elements together.
        eps: inside the root, finite and not negative; None: machine epsilon of the computation dtype.
        elementwise_affine: whether there is a gain. It starts at 1 (at 0 with ``zero_centered``, where the gain is
            1 + weight).
        device, dtype: of the parameters. They may differ from the input's dtype.
        bias: whether there is a bias, under the key ``bias``. It starts at 0.
        p: the RMS is taken of the first k = ⌈n·p⌉ elements; 0 < p ≤ 1. Take p so that k is 16 or more: with
            independent elements the RMS is then known to about 18 %, whatever n is (measured in docs/partial.md).
        zero_centered: the gain is 1 + weight (Gemma, Qwen3-Next).
        casting: ``"once"`` or ``"llama"``, as in :func:`rmsnorm.torch.rms_norm`.
        heads: None, or the size of the input's dimension before the normalised ones. Gain and bias then have the shape
            (heads, \*normalized_shape), one for each head.

    Shape:
        - input: (…, \*normalized_shape), or (…, heads, \*normalized_shape); float16, bfloat16, float32 or float64
        - output: the input's shape and dtype (with ``casting="llama"`` the promoted dtype)

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument has a wrong value, for example a bias without ``elementwise_affine``.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), §3.

    Example:
        >>> norm = RMSNorm(2)
        >>> norm(torch.tensor([[3.0, 4.0]])).detach()
        tensor([[0.8485, 1.1314]])
        >>> RMSNorm(1024, p=0.0625)
        RMSNorm((1024,), eps=None, elementwise_affine=True, p=0.0625)
    """

    __constants__ = (  # type: ignore[assignment]  # torch's are lists
        "normalized_shape",
        "eps",
        "elementwise_affine",
        "p",
        "zero_centered",
        "casting",
        "heads",
    )
    normalized_shape: tuple[int, ...]
    eps: float | None
    elementwise_affine: bool
    weight: nn.Parameter | None  # type: ignore[assignment]
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
        super(nn.RMSNorm, self).__init__()
        spec = check_spec("rms", normalized_shape, eps, p, zero_centered, casting)
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
    r"""RMSNorm with a SiLU gate, as in Mamba-2, with a gain.

    .. math:: y = \mathrm{rms\_norm}(x \odot \mathrm{silu}(z)) \odot g \quad\text{or}\quad
              y = \mathrm{rms\_norm}(x) \odot g \odot \mathrm{silu}(z)

    The second form is that of ``norm_before_gate=True``. The module calls :func:`rmsnorm.torch.rms_norm_gated`.

    Args:
        normalized_shape: the last dimensions of the input, of n elements together.
        eps: inside the root; None: machine epsilon of the computation dtype.
        device, dtype: of the gain ``weight``, which starts at 1. They may differ from the input's dtype.
        norm_before_gate: normalise first, then apply the gate.
        groups: split the n elements into this number of groups; each has its own statistic.
        p: the RMS is taken of this fraction of each group's elements, the first ones; 0 < p ≤ 1.

    Shape:
        - input, gate: (…, \*normalized_shape); float16, bfloat16, float32 or float64
        - output: the input's shape and dtype

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument has a wrong value, for example ``groups`` that do not divide n.

    Source: Dao & Gu, "Transformers are SSMs" (2024).

    Example:
        >>> gated = RMSNormGated(8, groups=2)
        >>> gated(torch.randn(3, 8), torch.randn(3, 8)).shape
        torch.Size([3, 8])
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
        spec = check_gated_spec(normalized_shape, eps, norm_before_gate, groups, p)
        self.normalized_shape = spec.normalized_shape
        self.eps, self.p = spec.group.eps, spec.group.p
        self.norm_before_gate, self.groups = spec.norm_first, spec.groups
        self.weight = nn.Parameter(torch.empty(spec.normalized_shape, device=device, dtype=dtype))
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
        return functional.rms_norm_gated(
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


class LayerNorm(nn.LayerNorm):
    r"""LayerNorm over the last dimensions, in the same kernels as :class:`RMSNorm`, for a fair comparison.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \mathrm{eps}}} \odot g + b, \qquad
              \mu = \tfrac{1}{n} \textstyle\sum_i x_i, \quad \sigma^2 = \tfrac{1}{n} \textstyle\sum_i (x_i - \mu)^2

    Replaces :class:`torch.nn.LayerNorm`, of which it is a subclass: the same arguments and ``state_dict``. The module
    calls :func:`rmsnorm.torch.layer_norm`.

    Args:
        normalized_shape: the last dimensions of the input, of n elements together.
        eps: inside the root, finite and not negative; None: machine epsilon of the computation dtype.
        elementwise_affine: whether there is a gain, which starts at 1.
        bias: whether there is a bias too, which starts at 0.
        device, dtype: of the parameters. They may differ from the input's dtype.
        heads: as in :class:`RMSNorm`.

    Shape:
        - input: (…, \*normalized_shape), or (…, heads, \*normalized_shape); float16, bfloat16, float32 or float64
        - output: the input's shape and dtype

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument has a wrong value.

    Source: Ba, Kiros & Hinton, "Layer Normalization" (2016).

    Example:
        >>> LayerNorm(4, bias=False)
        LayerNorm((4,), eps=1e-05, elementwise_affine=True, bias=False)
    """

    __constants__ = ("normalized_shape", "eps", "elementwise_affine", "heads")  # type: ignore[assignment]
    normalized_shape: tuple[int, ...]
    eps: float | None  # type: ignore[assignment]
    elementwise_affine: bool
    weight: nn.Parameter | None  # type: ignore[assignment]
    bias: nn.Parameter | None  # type: ignore[assignment]

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
        super(nn.LayerNorm, self).__init__()
        self.normalized_shape = check_shape(normalized_shape)
        self.heads = check_heads(heads)
        self.eps = check_spec("layer", normalized_shape, eps).eps
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
