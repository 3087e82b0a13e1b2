"""QK-norm with a rotary embedding as a function of tensors: which way a call goes."""

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from rmsnorm.spec import check_spec, norm_spec
from rmsnorm.torch.dispatch import AUTOGRAD, COMPOSITE, KERNEL, OPERATOR, eager_way, graph_way
from rmsnorm.torch.indirect import recorded_call, refuse_holders
from rmsnorm.torch.operation import checked_composite, run
from rmsnorm.torch.rotary.eager import ROTARY, head_dim, recorded_rotary

_ops = torch.ops.rmsnorm


def rms_norm_rotary(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float | None = None,
    *,
    zero_centered: bool = False,
    casting: str = "once",
) -> tuple[Tensor, Tensor]:
    r"""QK-norm and the rotary position embedding in one pass over query and key.

    .. math:: \hat q = \mathrm{rms\_norm}(q), \qquad
              \left(\begin{matrix} y_i \\ y_{h+i} \end{matrix}\right) =
              \left(\begin{matrix} \hat q_i \cos_i - \hat q_{h+i} \sin_i \\
              \hat q_{h+i} \cos_{h+i} + \hat q_i \sin_{h+i} \end{matrix}\right)
              \quad (i < h = \tfrac{1}{2} \mathrm{rotary\_dim})

    The norm is over head_dim. Of the normed elements the first rotary_dim are rotated, each of their first half with
    one of their second half (the order of GPT-NeoX and Hugging Face); the others stay. k likewise. For GPT-J's order,
    in which neighbours are rotated together, put the projections' rows and the gains into this order once.

    Args:
        q: (…, heads, positions, head_dim), as attention takes it; float16, bfloat16, float32 or float64; any strides:
            ``projected.view(batch, positions, heads, head_dim).transpose(1, 2)`` is not copied, nor are slices of one
            projection to q, k and v.
        k: of q's shape, with a number of heads of its own.
        cos, sin: (…, positions, rotary_dim), what a model's rotary embedding gives for the positions; an even
            rotary_dim ≤ head_dim, any floating dtype. They are the same for all heads. Dimensions before rotary_dim may
            be 1, and the first ones may be missing: (positions, rotary_dim) serves every item of a batch.
        q_weight, k_weight: the gains, of shape (head_dim,), or (heads, head_dim) with one for each head; any floating
            dtype; None: 1.
        eps: inside the root, of both norms; None: machine epsilon of the computation dtype (1.19e-7, or 2.22e-16 for
            float64).
        zero_centered: the gains are 1 + weight (Gemma 3, Qwen3-Next).
        casting: ``"once"``: norm and rotation are computed in the computation dtype and rounded once, to the dtype of q
            (of k). ``"llama"``: each step is rounded as in Hugging Face's Qwen3. The result is, bit for bit, that of
            ``rms_norm(q, head_dim, q_weight, casting="llama")`` and then ``q * cos + rotate_half(q) * sin`` in torch,
            and has the dtype that promotion gives; the kernels serve it where q, weight, cos and sin have one dtype.

    The computation dtype is float32, or float64 for float64 inputs. Derivatives of every order, forward mode and
    ``torch.func`` transforms work. If cos or sin requires grad, torch's operations serve the call.

    Returns:
        (query, key), of the shapes and dtypes of q and k, with the strides of ``torch.empty_like`` of them. Of the
        transposed views above, a position's heads lie together in memory; ``scaled_dot_product_attention`` takes them
        as they are.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has a wrong value, or if tensors do not fit each other; the latter error is a
            ``RuntimeError`` too, as in torch.
        NotImplementedError: for nested tensors and DTensors.

    Source: Henry et al., "Query-Key Normalization for Transformers" (2020), with the RMSNorm of Qwen3 and Gemma 3; Su
    et al., "RoFormer" (2021).

    Example:
        >>> q, k = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 2.0]]])
        >>> cos, sin = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])
        >>> rms_norm_rotary(q, k, cos, sin)
        (tensor([[[-1.1314,  0.8485]]]), tensor([[[-1.4142,  0.0000]]]))
    """
    tensors = q, k, cos, sin, q_weight, k_weight
    how = eps, zero_centered, casting
    if is_compiling():
        way = COMPOSITE if _asks_gradient(cos, sin) else graph_way(q, k, cos, sin)
        if way == OPERATOR:
            return _ops.rms_norm_rotary(*tensors, *how)
    else:
        way = eager_way(*tensors)
        if k is None or cos is None or sin is None or (way == AUTOGRAD and _asks_gradient(cos, sin)):
            way = COMPOSITE
    if way == COMPOSITE:
        options: dict[str, Any] = {"q_weight": q_weight, "k_weight": k_weight, "eps": eps}
        options |= {"zero_centered": zero_centered, "casting": casting}
        pair = recorded_call(rms_norm_rotary, (q, k, cos, sin), options)
        if pair is not None:
            return pair
        refuse_holders("rms_norm_rotary", *tensors)
    spec = (check_spec if is_compiling() else norm_spec)("rms", head_dim(q), eps, 1.0, zero_centered, casting)
    if way == AUTOGRAD:
        return recorded_rotary(spec, *tensors)
    return (run if way == KERNEL else checked_composite)(ROTARY, spec, tensors)


def _asks_gradient(*tensors: Any) -> bool:
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors)
