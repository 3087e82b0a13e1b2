"""What a measurement was made on: machine, versions and commit. All of it can be published.

No framework is imported here (versions come from the packages' metadata). Nothing names the host, the user or a path.
"""

import functools
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from rmsnorm.info import cpuinfo, native_level, output, processor, usable_threads, versions

# Variables that change times by factors: number of threads, how they wait, and how memory is allocated.
SETTINGS = (
    "RMSNORM_ISA",
    "RMSNORM_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "GOMP_SPINCOUNT",
    "THP_MEM_ALLOC_ENABLE",
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_CONF",
    "LD_PRELOAD",
)


@dataclass(frozen=True)
class Machine:
    """The machine and the software. None: it cannot be found out."""

    cpu: str
    isa: str | None
    """The instruction-set level of the native kernels; None if there are none."""
    cores: int | None
    threads: int
    """Logical processors that this process may use."""
    caches: dict[str, str]
    memory_gib: float | None
    os: str
    environment: dict[str, str]
    """Those of ``SETTINGS`` that are set."""
    python: str
    versions: dict[str, str]
    commit: str | None
    """Of the checkout that the sources lie in; None for an installed wheel."""
    dirty: bool | None
    """Whether ``src`` or the build files differ from the commit: a figure of a dirty tree belongs to no commit."""


@functools.cache
def describe() -> Machine:
    """This machine, and the software that this process uses."""
    commit, dirty = _commit()
    return Machine(
        cpu=processor(),
        isa=native_level(),
        cores=_cores(),
        threads=usable_threads(),
        caches=_caches(),
        memory_gib=_memory_gib(),
        os=_os(),
        environment=_environment(),
        python=platform.python_version(),
        versions=versions(),
        commit=commit,
        dirty=dirty,
    )


def others_seconds() -> float | None:
    """Processor seconds since boot spent on everything except this process, including the host's other guests.

    None if the system does not report them. If they grow during a measurement, the machine was not quiet.
    """
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    own = os.times()
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def _environment() -> dict[str, str]:
    """Those of ``SETTINGS`` that are set. An allocator is often preloaded: of libraries the names, without folders."""
    found = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    if "LD_PRELOAD" in found:
        found["LD_PRELOAD"] = " ".join(Path(library).name for library in re.split("[ :]+", found["LD_PRELOAD"]))
    return found


def _cores() -> int | None:
    pairs = {(cpu.get("physical id"), cpu["core id"]) for cpu in cpuinfo() if "core id" in cpu}
    if pairs:
        return len(pairs)
    counted = output("sysctl", "-n", "hw.physicalcpu")
    return int(counted) if counted else None


def _caches() -> dict[str, str]:
    """Data and unified caches as the first processor sees them, for example {"L1": "48K", "L2": "2048K"}."""
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            caches[f"L{level}"] = size
    return caches


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _os() -> str:
    """System, kernel's first two numbers (the rest often names a cloud), architecture and C library."""
    release = ".".join(platform.release().split(".")[:2])
    libc = " ".join(platform.libc_ver()).strip()
    return ", ".join(filter(None, [f"{platform.system()} {release}", platform.machine(), libc]))


def _commit() -> tuple[str | None, bool | None]:
    """The commit, and whether the sources differ from it."""
    here = Path(__file__).resolve().parent
    # An installed copy can lie inside somebody else's repository; only a file that git tracks proves a checkout.
    if output("git", "-C", str(here), "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    sources = [":/src", ":/CMakeLists.txt", ":/pyproject.toml"]
    changed = output("git", "-C", str(here), "status", "--porcelain", "--", *sources)
    return output("git", "-C", str(here), "rev-parse", "HEAD"), bool(changed)
