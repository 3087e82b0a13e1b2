"""The cases of the stages, the most important first. The build stage compiles the kernels of all of them."""

from gpu_stages.stage import Setting
from rmsnorm_lab.bench.cases import DTYPES, Case

SMOKE = (4096, 131072, 128, 1000, 16384, 1023, 64, 2880, 5120, 16385)
SHAPES = (4096, 1024, 8192, 2880, 5120, 7168, 16384, 128, 32768, 131072)
COMPILED = (1024, 4096, 16384)  # torch.compile takes seconds a case
BESIDE_QUACK = (1024, 4096, 8192, 16384)
HOST = ((1, 4096), (64, 4096), (4096, 128))
PARTIAL = (4096, 16384, 32768, 131072)
SWEPT = (4096, 1024, 8192, 16384, 5120, 2880, 7168, 128, 256, 64, 2048, 512, 32768, 131072)
OTHERS = (
    ("layer_norm", "forward"),
    ("layer_norm", "backward"),
    ("rms_norm_gated", "forward"),
    ("rms_norm_gated", "backward"),
    ("rms_norm_quantized", "forward"),
)


def _case(op: str, direction: str, rows: int, n: int, dtype: str = "bfloat16", p: float = 1.0) -> Case:
    return Case(op, direction, dtype, rows, n, p, device="cuda")


def smoke_first() -> list[Case]:
    """One case for each kind of kernel: rows in registers; looped, rows, columns; stream, head; gated; codes."""
    both = [
        ("rms_norm", 4096, 1.0),
        ("rms_norm", 131072, 1.0),
        ("rms_norm", 131072, 1 / 128),
        ("rms_norm_gated", 4096, 1.0),
    ]
    found = [_case(op, "forward+backward", _few(n), n, p=p) for op, n, p in both]
    return found + [_case("rms_norm_quantized", "forward", _few(n), n) for n in (4096, 131072)]


def smoke() -> list[Case]:
    """Every operation, forward and backward, at every kind of length: a quarter million elements each."""
    both = ("rms_norm", "add_rms_norm", "layer_norm", "rms_norm_heads", "rms_norm_gated")
    found = [
        _case(op, direction, _few(n), n, dtype)
        for n in SMOKE
        for dtype in ("bfloat16", "float32")
        for op, direction in [*((op, "forward+backward") for op in both), ("rms_norm_quantized", "forward")]
    ]
    found += [_case("rms_norm", "forward+backward", 16, n, p=p) for n in SMOKE for p in (0.0625, 0.3)]
    # The gradients of a row of one element are zeros, which no relative error fits.
    found += [_case(op, "forward", 1 << 16, 1, dtype) for op in (*both, "rms_norm_quantized") for dtype in DTYPES]
    first = smoke_first()
    return first + [case for case in found if case not in first]


def smoke_out() -> list[Case]:
    """Into memory that is there: ``out=``, and the addition in place."""
    kinds = [("rms_norm", 1.0), ("rms_norm", 1 / 128), ("layer_norm", 1.0), ("add_rms_norm_inplace", 1.0)]
    return [_case(op, "forward", _few(n), n, p=p) for op, p in kinds for n in (4096, 131072)]


def _few(n: int) -> int:
    return 16 * max(1, (1 << 14) // n)


def shapes(setting: Setting) -> list[Case]:
    """256 MiB of bfloat16 at every width: forward, backward alone, with the addition; then some other kernels."""
    kinds = [("rms_norm", "forward"), ("rms_norm", "backward"), ("add_rms_norm", "forward")]
    found = [_case(op, direction, setting.rows(n), n) for n in SHAPES for op, direction in kinds]
    found += [_case("add_rms_norm", "backward", setting.rows(n), n) for n in COMPILED]
    found += [_case(op, direction, setting.rows(n), n) for n in (4096, 128) for op, direction in OTHERS]
    both = [(n, direction) for n in (1024, 4096, 8192) for direction in ("forward", "backward")]
    return found + [_case("rms_norm", direction, setting.rows(2 * n), n, "float32") for n, direction in both]


def partial(setting: Setting) -> list[Case]:
    """pRMSNorm at one row, 8 MiB and 128 MiB."""
    sizes = [setting.elements // 2, setting.elements // 32, 1]
    return [
        _case("rms_norm", direction, max(1, size // n), n, p=p)
        for p in (1 / 128, 0.0625, 0.25)
        for size in sizes
        for n in PARTIAL
        for direction in ("forward", "backward")
    ]


def host() -> list[Case]:
    return [_case("rms_norm", direction, rows, n) for rows, n in HOST for direction in ("forward", "forward+backward")]


def swept(setting: Setting) -> list[Case]:
    both = [_case("rms_norm", direction, setting.rows(n), n) for n in SWEPT for direction in ("forward", "backward")]
    both += [_case("rms_norm", "forward", setting.rows(n), n, p=1 / 128) for n in PARTIAL]
    return both + [_case(op, direction, setting.rows(n), n) for n in (4096, 128) for op, direction in OTHERS]
