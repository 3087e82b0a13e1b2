"""The cases of the stages, the most important first. The build stage compiles the kernels of all of them."""

from gpu_stages.stage import Setting
from rmsnorm_lab.bench.cases import Case

SMOKE = (64, 128, 1000, 1023, 2880, 4096, 5120, 16384, 16385, 131072)
SHAPES = (4096, 1024, 8192, 2880, 5120, 7168, 16384, 128, 32768, 131072)
COMPILED = (1024, 4096, 16384)  # torch.compile takes seconds a case
HOST = ((1, 4096), (64, 4096), (4096, 128))
PARTIAL = (4096, 16384, 32768, 131072)
SWEPT = (4096, 1024, 8192, 16384, 5120, 2880, 7168, 128, 2048, 512, 32768)


def _case(op: str, direction: str, rows: int, n: int, dtype: str = "bfloat16", p: float = 1.0) -> Case:
    return Case(op, direction, dtype, rows, n, p, device="cuda")


def smoke() -> list[Case]:
    """Every operation, forward and backward, at every kind of length: a quarter million elements each."""
    both = ("rms_norm", "add_rms_norm", "layer_norm", "rms_norm_heads", "rms_norm_gated")
    found = [
        _case(op, direction, 16 * max(1, (1 << 14) // n), n, dtype)
        for n in SMOKE
        for dtype in ("bfloat16", "float32")
        for op, direction in [*((op, "forward+backward") for op in both), ("rms_norm_quantized", "forward")]
    ]
    partial = [_case("rms_norm", "forward+backward", 16, n, p=p) for n in SMOKE for p in (0.0625, 0.3)]
    return found + partial


def shapes(setting: Setting) -> list[Case]:
    """256 MiB of bfloat16 at every width: forward, backward alone, with the addition."""
    kinds = [("rms_norm", "forward"), ("rms_norm", "backward"), ("add_rms_norm", "forward")]
    found = [_case(op, direction, setting.rows(n), n) for n in SHAPES for op, direction in kinds]
    return found + [_case("add_rms_norm", "backward", setting.rows(n), n) for n in COMPILED]


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
    return both + [_case("rms_norm", "forward", setting.rows(n), n, p=1 / 128) for n in PARTIAL]
