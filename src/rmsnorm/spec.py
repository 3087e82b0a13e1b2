"""What a norm is asked to do, checked once, and every message about a wrong argument.

Nothing here knows a framework. Shapes are tuples of ints and dtypes are names ("float32", "bfloat16", …).
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any


class MismatchError(ValueError, RuntimeError):
    """Tensors that fit neither each other nor the call: shape, dtype, device.

    A ValueError, as every wrong value here, and a RuntimeError, which torch raises in its place and its users catch.
    """


Axis = int | Sequence[int]
FLOATING = ("float16", "bfloat16", "float32", "float64")
CASTINGS = ("once", "llama")


def fraction_of(p: float) -> tuple[int, int]:
    """``p`` as (numerator, denominator) of the simplest fraction that rounds to the given float.

    Raises ``ValueError`` unless 0 < p ≤ 1, ``TypeError`` if p is not a number.
    """
    try:
        value = float(p)
    except (TypeError, ValueError):
        raise TypeError(f"p must be a number, 0 < p <= 1, got {p!r}") from None
    if not 0 < value <= 1:
        raise ValueError(f"p is the fraction of elements whose RMS is taken: 0 < p <= 1, got {p!r}")
    return simplest(*value.as_integer_ratio())


def simplest(numerator: int, denominator: int) -> tuple[int, int]:
    """The simplest fraction that rounds to the same float as the given one; for compilers, a function of constants."""
    return _simplest(numerator, denominator)


@lru_cache(maxsize=4096)
def _simplest(numerator: int, denominator: int) -> tuple[int, int]:
    exact = Fraction(numerator, denominator)
    for digits in range(1, 18):
        simple = exact.limit_denominator(10**digits)
        if float(simple) == float(exact):
            exact = simple
            break
    return exact.numerator, exact.denominator


def partial_count(n: int, p: float) -> int:
    """k = ⌈n·p⌉, the number of leading elements whose RMS is taken (paper §3.2).

    The product is exact: 0.1 of 30 is 3 (in floating point the ceiling would be 4) and 5/9 of 9 is 5.

    Raises ``ValueError`` unless 0 < p ≤ 1, ``TypeError`` if p is not a number.
    """
    numerator, denominator = fraction_of(p)
    return max(1, -(-n * numerator // denominator)) if n else 0


@dataclass(frozen=True, eq=False)
class NormSpec:
    """One checked norm: which one, over what, and by which conventions.

    Every function below the public ones takes it. It is equal to itself alone: :func:`norm_spec` gives equal calls the
    same one, so that what is derived from it can be found by identity.
    """

    kind: str
    """``"rms"`` or ``"layer"``."""
    normalized_shape: tuple[int, ...]
    eps: float | None = None
    """None: machine epsilon of the computation dtype."""
    p: float = 1.0
    zero_centered: bool = False
    casting: str = "once"

    @property  # not a cached one: Dynamo does not trace its lock, which it has before Python 3.12
    def rounds_first(self) -> bool:
        """Whether x̂ is rounded to the input's dtype before the gain (Llama's casting)."""
        return self.casting == "llama"

    @property
    def how(self) -> tuple[float | None, float, bool, str]:
        """What the operators of RMSNorm take after the tensors."""
        return self.eps, self.p, self.zero_centered, self.casting

    @property
    def n(self) -> int:
        """How many elements are normalised together."""
        return math.prod(self.normalized_shape)

    @property
    def k(self) -> int:
        """How many of them, from the first on, the statistic is taken of."""
        return self.n if self.p == 1 else partial_count(self.n, self.p)


def norm_spec(
    kind: str,
    normalized_shape: int | Sequence[int],
    eps: float | None = None,
    p: float = 1.0,
    zero_centered: bool = False,
    casting: str = "once",
) -> NormSpec:
    """:func:`check_spec` of equal arguments once: 0.2 µs from then on."""
    shape: Any = normalized_shape
    try:
        if type(shape) is not int:
            if type(shape) is not tuple:
                shape = tuple(shape) if isinstance(shape, (tuple, list)) else None
            for extent in shape:
                if type(extent) is not int:  # 8.0 equals 8, and a symbol must stay one
                    raise TypeError
        return _kept(kind, shape, eps, p, zero_centered, casting)
    except TypeError:  # not to be kept, or of a wrong type
        return check_spec(kind, normalized_shape, eps, p, zero_centered, casting)


@lru_cache(maxsize=4096)
def _kept(kind: str, shape: Any, eps: float | None, p: float, zero_centered: bool, casting: str) -> NormSpec:
    """TypeError, and nothing is kept, for a tensor, which equals itself after its value has changed."""
    if type(eps) not in _CONSTANT or type(p) not in _CONSTANT:
        raise TypeError
    return check_spec(kind, shape, eps, p, zero_centered, casting)


_CONSTANT = frozenset((float, int, type(None)))


def check_spec(
    kind: str,
    normalized_shape: int | Sequence[int],
    eps: float | None = None,
    p: float = 1.0,
    zero_centered: bool = False,
    casting: str = "once",
) -> NormSpec:
    """The arguments as a :class:`NormSpec`, or the error that says what is wrong with them."""
    return NormSpec(
        kind,
        check_shape(normalized_shape),
        check_eps(eps),
        check_p(p),
        check_bool(zero_centered),
        check_casting(casting),
    )


def check_shape(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """``normalized_shape`` as a tuple of ints."""
    one = isinstance(normalized_shape, int) or hasattr(normalized_shape, "__index__")
    extents: Any = (normalized_shape,) if one else normalized_shape
    try:
        if isinstance(extents, (bytes, dict, set, frozenset)):  # the order of a set is not that of dimensions
            raise TypeError
        shape = tuple(_extent(e) for e in extents)
    except TypeError:
        raise TypeError(f"normalized_shape must be an int or a sequence of ints, got {normalized_shape!r}") from None
    if not shape:
        raise ValueError("normalized_shape must name at least one dimension, got ()")
    if min(shape) < 0:
        raise ValueError(f"normalized_shape must hold no negative extent, got {shape}")
    return shape


def _extent(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return value if isinstance(value, int) else operator.index(value)  # symbols count as int


def normalized_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """``axis`` as distinct axes of an array of ``ndim`` dimensions, in order and not negative."""
    try:  # before the cache is asked, to which 0.0 is 0
        return _sorted_axes((operator.index(axis),), ndim)  # type: ignore[arg-type]
    except TypeError:
        try:
            return _sorted_axes(tuple(map(operator.index, axis)), ndim)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"axis must be an int or a sequence of ints, got {axis!r}") from None


@lru_cache
def _sorted_axes(axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    if not axes or any(not -ndim <= a < ndim for a in axes) or len({a % ndim for a in axes}) != len(axes):
        raise ValueError(f"axis must name distinct axes of an array of {ndim} dimensions, got {axes!r}")
    return tuple(sorted(a % ndim for a in axes))


def check_eps(eps: float | None) -> float | None:
    """``eps`` as a finite float that is not negative, or None."""
    if eps is None:
        return None
    try:
        value = _number(eps)
    except TypeError:
        raise TypeError(
            f"eps must be a number or None (machine epsilon of the computation dtype), got {eps!r}"
        ) from None
    if not 0 <= value < math.inf:
        raise ValueError(f"eps is inside the root and must be finite and not negative, got {eps!r}")
    return value


def check_p(p: float) -> float:
    """``p`` as a float with 0 < p ≤ 1."""
    try:
        value = _number(p)
    except TypeError:
        raise TypeError(f"p must be a number, 0 < p <= 1, got {p!r}") from None
    partial_count(1, value)
    return value


def _number(value: object) -> float:
    # float() would take them. A compiler's symbol is a number, and has no attributes to ask for.
    known = isinstance(value, (int, float))
    if isinstance(value, (str, bytes)) or (not known and getattr(value, "requires_grad", False)):
        raise TypeError
    try:
        return float(value)  # type: ignore[arg-type]
    except ValueError:
        raise TypeError from None
    except OverflowError:
        return math.inf


def check_no_self_overlap(name: str, shape: Sequence[int], strides: Sequence[int], item: int) -> None:
    """No two elements of what is written may be one place in memory; strides count as ``item`` does."""
    if 0 in shape:
        return
    reach = item
    for stride, extent in sorted((abs(s), e) for s, e in zip(strides, shape, strict=True) if e > 1):
        if stride < reach:
            raise ValueError(
                f"{name} must not be an expanded or overlapping array: several of its elements are one place in memory"
            )
        reach += stride * (extent - 1)


def check_bool(zero_centered: bool) -> bool:
    """``zero_centered`` as a bool."""
    if not _is_flag(zero_centered):
        raise TypeError(f"zero_centered must be True (gain is 1 + weight) or False, got {zero_centered!r}")
    return bool(zero_centered)


def check_flag(name: str, value: bool) -> bool:
    """``value`` as a bool: a device or a dtype one place too early would count as True."""
    if not _is_flag(value):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _is_flag(value: object) -> bool:
    """Whether ``value`` equals True or False. An array may have no answer, or more than one."""
    try:
        return value in (True, False)
    except Exception:
        return False


def check_casting(casting: str) -> str:
    """``casting`` as one of :data:`CASTINGS`."""
    if not isinstance(casting, str) or casting not in CASTINGS:
        raise ValueError(
            f"casting must be 'once' (round after the gain) or 'llama' (round x̂ before the gain), got {casting!r}"
        )
    return casting


def check_input(name: str, shape: Sequence[int], dtype: str, normalized_shape: tuple[int, ...]) -> None:
    """The normalised dimensions must be the last ones of a floating array."""
    if dtype not in FLOATING:
        raise TypeError(f"{name} must be of a floating dtype ({', '.join(FLOATING)}), got {dtype}; convert it first")
    if tuple(shape[len(shape) - len(normalized_shape) :]) != normalized_shape or len(shape) < len(normalized_shape):
        raise MismatchError(
            f"the last dimensions of {name} must be normalized_shape = {normalized_shape}, "
            f"got {name} of shape {tuple(shape)}"
        )


def check_heads(heads: int | None) -> int | None:
    """``heads`` as a positive int, or None."""
    if heads is None:
        return None
    count = _index(heads)
    if count is None:
        raise TypeError(f"heads must be an int or None (one gain for all), got {heads!r}")
    if count < 1:
        raise ValueError(f"heads must be at least 1, or None for one gain for all, got {heads}")
    return count


def _index(value: Any) -> int | None:
    """``value`` as an int; None if it is none. Every array has ``__index__``, and few have an answer."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_groups(groups: int, n: int) -> int:
    """``groups`` as an int that divides the n normalised elements."""
    count = _index(groups)
    if count is None:
        raise TypeError(f"groups must be an int, got {groups!r}")
    if count < 1 or n % count:
        raise ValueError(f"groups must divide the {n} normalised elements, got {groups}")
    return count


def check_norm_first(norm_before_gate: bool) -> bool:
    """``norm_before_gate`` as a bool."""
    if not _is_flag(norm_before_gate):
        raise TypeError(
            f"norm_before_gate must be True (rms_norm(x)·silu(gate)) or False (rms_norm(x·silu(gate))), "
            f"got {norm_before_gate!r}"
        )
    return bool(norm_before_gate)


def check_parameter(
    name: str, shape: Sequence[int], dtype: str, normalized_shape: tuple[int, ...], heads: int | None = None
) -> None:
    """Gain and bias have a floating dtype and exactly the normalised shape, or, where the input has a dimension of
    ``heads`` before it, ``(heads, *normalized_shape)``."""
    if dtype not in FLOATING:
        raise TypeError(f"{name} must be of a floating dtype ({', '.join(FLOATING)}), got {dtype}")
    if tuple(shape) == normalized_shape or (heads is not None and tuple(shape) == (heads, *normalized_shape)):
        return
    each = "" if heads is None else f", or {(heads, *normalized_shape)} with one for each head"
    raise MismatchError(f"{name} must have the shape normalized_shape = {normalized_shape}{each}, got {tuple(shape)}")


def check_same(name: str, value: object, of: str, expected: object, what: str) -> None:
    """``name`` and ``of`` must agree in ``what`` (shape, dtype, device)."""
    if value != expected:
        raise MismatchError(f"{name} must have the {what} of {of}, {expected}, got {value}")


def check_heads_of_positions(q: Sequence[int], k: Sequence[int]) -> None:
    """The shapes of query and key: (…, heads, positions, head_dim), alike except for the heads."""
    if len(q) < 3:
        raise MismatchError(f"q must have the shape (…, heads, positions, head_dim), got {tuple(q)}")
    if len(k) != len(q) or (*k[:-3], *k[-2:]) != (*q[:-3], *q[-2:]):
        expected = "(" + ", ".join(map(str, (*q[:-3], "heads", *q[-2:]))) + ")"
        raise MismatchError(f"k must have the shape of q with a number of heads of its own, {expected}, got {tuple(k)}")


def check_angles(cos: Sequence[int], sin: Sequence[int], positions: Sequence[int]) -> None:
    """The shapes of cos and sin: (…, rotary_dim), repeated over the dimensions of ``positions`` (…, head_dim) that they
    lack or where they have the extent 1."""
    *outer, head_dim = positions
    if not cos or cos[-1] % 2 or cos[-1] > head_dim:
        raise MismatchError(
            f"the last dimension of cos must be an even number of elements to rotate, at most q's head_dim {head_dim}, "
            f"got cos of shape {tuple(cos)}"
        )
    given = cos[:-1]
    if len(given) > len(outer) or any(c not in (1, o) for c, o in zip(reversed(given), reversed(outer), strict=False)):
        raise MismatchError(
            f"cos must have the shape {(*outer, cos[-1])}, q's without its heads, or one that broadcasts to it, "
            f"got {tuple(cos)}"
        )
    check_same("sin", tuple(sin), "cos", tuple(cos), "shape")
