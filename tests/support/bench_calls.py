"""The benchmark's command, and a small case."""

from rmsnorm import cli
from rmsnorm_lab.bench.cases import Case

SMALL = ["--shape", "8x64", "--op", "rms_norm", "--p", "1", "--threads", "1", "--quick"]
CASE = Case(op="rms_norm", direction="forward", dtype="float32", rows=8, n=64)


def bench(*arguments):
    return cli.main(["bench", *map(str, arguments)])
