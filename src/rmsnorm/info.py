"""``rmsnorm info``: what this installation can do here, and why not the rest."""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("rmsnorm", "numpy", "torch", "triton", "jax", "jaxlib", "onnxruntime", "ml_dtypes")
FRAMEWORKS = ("numpy", "torch", "jax", "ml_dtypes")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Print the report; returns the exit status."""
    facts = collect()
    print(json.dumps(facts, indent=2) if args.json else _text(facts))
    return 0


def collect() -> dict[str, Any]:
    """Everything that ``rmsnorm info`` shows, as JSON values."""
    found = versions()
    return {
        "rmsnorm": found.get("rmsnorm"),
        "python": platform.python_version(),
        "cpu": processor(),
        "threads": usable_threads(),
        "native": _native(),
        "frameworks": {name: found.get(name) for name in FRAMEWORKS},
        "backends": _backends(),
    }


def _native() -> dict[str, Any]:
    try:
        from rmsnorm import native
    except ImportError as error:
        return {"error": str(error)}
    if native.missing:
        return {"error": native.missing}
    return {
        "level": native.level(),
        "available": list(native.available_levels()),
        "forced": "RMSNORM_ISA" in os.environ,
        "pool_threads": native.kernels.num_threads(),
    }


def native_level() -> str | None:
    """The instruction-set level that the native kernels were loaded for; None if there are no kernels."""
    return _native().get("level")


def _backends() -> list[dict[str, str]]:
    """For each place where a tensor can be: what computes there, or why nothing does."""
    why = _native().get("error")
    if why:
        found = [{"where": "numpy", "served by": "nothing", "why": str(why)}]
    else:
        found = [
            {"where": "numpy", "served by": "native kernels", "threads": "rmsnorm's own pool (RMSNORM_NUM_THREADS)"}
        ]
    if not why and importlib.util.find_spec("ml_dtypes") is None:
        found[0]["without"] = "bfloat16: ml_dtypes is not installed (pip install ml_dtypes)"
    if importlib.util.find_spec("torch") is None:
        found.append({"where": "torch", "served by": "nothing", "why": "not installed (pip install 'rmsnorm[torch]')"})
    else:
        found += _torch()
    return found + _jax()


def _torch() -> list[dict[str, str]]:
    try:
        import torch

        from rmsnorm.torch import bindings, dispatch, node_files
        from rmsnorm.torch.norm.eager import why_no_nodes
        from rmsnorm.torch.registration import why_no_operators
    except (ImportError, OSError) as error:  # torch is installed and cannot be loaded
        return [{"where": "torch", "served by": "nothing", "why": f"importing it failed: {error}"}]
    why = _native().get("error")
    if why:
        found = [{"where": "torch cpu", "served by": "composite", "why": str(why)}]
    else:
        pool = (
            f"torch's ({torch.get_num_threads()})"
            if bindings.shares_torch_threads
            else "rmsnorm's own pool: torch is older than 2.10"
        )
        tensors = (
            "as they are (DLPack's C exchange API)"
            if bindings.exchanges
            else "described from Python: torch is older than 2.10"
        )
        found = [
            {
                "where": "torch cpu, eager",
                "served by": "native kernels",
                "threads": pool,
                "tensors": tensors,
                "autograd nodes": f"in Python: {why_no_nodes}" if why_no_nodes else "in C++",
            },
            {
                "where": "torch cpu, compiled or exported",
                "served by": "native kernels",
                "as": "torch.ops.rmsnorm.*",
                "operators": f"in Python: {why_no_operators}"
                if why_no_operators
                else f"in {node_files.find_operators()}",
            },
        ]
    if why_no_triton := dispatch.tried_triton():
        found.append({"where": "torch cuda", "served by": "composite", "why": why_no_triton})
    else:
        there = torch.cuda.get_device_name() if torch.cuda.is_available() else "no device is present"
        found.append({"where": "torch cuda", "served by": "Triton kernels", "device": there})
    found.append(
        {
            "where": "torch cpu and cuda, vmap, forward mode, torch.func, double backward",
            "served by": "composite",
            "why": "the kernels do not have these derivatives; torch operations do",
        }
    )
    for device, present in (
        ("mps", torch.backends.mps.is_available()),
        ("xpu", hasattr(torch, "xpu") and torch.xpu.is_available()),
    ):
        why = "no kernel for this device yet" + ("" if present else "; no device is present")
        found.append({"where": f"torch {device}", "served by": "composite", "why": why})
    found.append({"where": "torch meta", "served by": "shapes and strides alone", "why": "there is nothing to compute"})
    return found


def _jax() -> list[dict[str, str]]:
    if importlib.util.find_spec("jax") is None:
        return [{"where": "jax", "served by": "nothing", "why": "not installed (pip install 'rmsnorm[jax]')"}]
    try:
        from rmsnorm.jax import kernels
    except (ImportError, AttributeError, OSError) as error:  # JAX is installed and cannot be loaded, or is too old
        return [{"where": "jax", "served by": "nothing", "why": f"importing it failed: {error}"}]
    if kernels.missing:
        cpu = {"where": "jax cpu", "served by": "jax.numpy", "why": kernels.missing}
    else:
        threads = "rmsnorm's own pool (RMSNORM_NUM_THREADS)"
        cpu = {"where": "jax cpu", "served by": "native kernels", "as": "XLA FFI handlers", "threads": threads}
    elsewhere = "jax gpu and tpu; forward mode, derivatives of derivatives"
    why = "the kernels are for CPUs and have no such derivatives"
    return [cpu, {"where": elsewhere, "served by": "jax.numpy", "why": why}]


def _text(facts: dict[str, Any]) -> str:
    native = facts["native"]
    lines = [
        f"rmsnorm {facts['rmsnorm'] or '(source tree)'} on Python {facts['python']}",
        f"processor   {facts['cpu']}",
    ]
    if "error" in native:
        lines.append(f"kernels     none: {native['error']}")
    else:
        how = "forced by RMSNORM_ISA" if native["forced"] else "the best that this processor runs"
        lines.append(f"kernels     {native['level']}, {how}; available: {', '.join(native['available'])}")
        lines.append(
            f"threads     {native['pool_threads']} in rmsnorm's own pool; this process may use {facts['threads']}"
        )
    lines.append("frameworks  " + ", ".join(f"{n} {v or 'not installed'}" for n, v in facts["frameworks"].items()))
    lines.append("backends")
    for backend in facts["backends"]:
        rest = "; ".join(f"{k}: {v}" for k, v in backend.items() if k not in ("where", "served by"))
        lines.append(f"  {backend['where']}: {backend['served by']}" + (f" ({rest})" if rest else ""))
    return "\n".join(lines)


def usable_threads() -> int:
    """Logical processors that this process may use: fewer than the machine has under taskset or in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of those of ``PACKAGES`` that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpuinfo() -> list[dict[str, str]]:
    """Linux's /proc/cpuinfo, one mapping per logical processor; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    blocks = [block for block in text.strip().split("\n\n") if block]
    return [
        {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        for block in blocks
    ]


def processor() -> str:
    """The processor's name; with family and model, because clouds call every server chip "Xeon Processor"."""
    for cpu in cpuinfo():
        if name := cpu.get("model name"):
            numbers = [cpu.get(key) for key in ("cpu family", "model", "stepping")]
            return f"{name} (family {'/'.join(map(str, numbers))})" if all(numbers) else name
    return output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def output(*command: str) -> str | None:
    """What a command prints, or None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
