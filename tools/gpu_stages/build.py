"""Stage 1: compiles every kernel of the later stages into the shared cache, on all processors, during stage 0.

The list of kernels comes from running the cases on a few rows on a CPU, with a launcher that only records what it is
asked for. So the list needs no device, and it is exactly what the cases will ask for on one.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from multiprocessing import get_context
from typing import Any
from unittest import mock

import torch

from gpu_session import processors
from gpu_stages import cases, sweep
from gpu_stages.stage import Item, Setting

IN_REHEARSAL = 12  # one kernel in twelve; stage.py then takes one in seven of these
ROWS = 16  # a kernel does not depend on their number
Job = tuple[Any, ...]  # the arguments of launch.launcher, without the device


def items(setting: Setting) -> Iterator[Item]:
    major, minor = (9, 0) if setting.rehearsal else torch.cuda.get_device_capability()
    arch = 10 * major + minor
    pool = ProcessPoolExecutor(max(1, processors() - 1), mp_context=get_context("spawn"))
    submit = partial(pool.submit, compile_job)
    if setting.rehearsal:  # stage.py calls one in seven of them; the others are not compiled
        for job in islice(wanted(setting), 0, None, IN_REHEARSAL):
            yield describe(job), lambda job=job: submit(named(job), arch).result()
    else:  # submitted as soon as it is known: the list takes some seconds, in which others compile
        futures = [(job, submit(named(job), arch)) for job in wanted(setting)]
        for job, future in futures:
            yield describe(job), future.result
    pool.shutdown(cancel_futures=True)  # after the stage's time, jobs that have not begun


def wanted(setting: Setting) -> Iterator[Job]:
    """The kernels of all stages, each once, in the order of their use."""
    from rmsnorm.torch.triton import plans
    from rmsnorm_lab.bench.oracle import make_inputs
    from rmsnorm_lab.bench.torch_providers import Ours

    found: dict[Job, None] = {}

    def launcher(kernel: Any, pointers: Any, wide: bool, constants: Any, choice: Any, device: int) -> Any:
        found[kernel, pointers, wide, constants, choice] = None
        return lambda x, y, tensors, addresses, integers: None

    every = [*cases.smoke(), *cases.shapes(setting), *cases.host(), *cases.swept(setting), *cases.partial(setting)]
    few = dict.fromkeys(replace(case, rows=ROWS) for case in every)
    swept = dict.fromkeys(replace(case, rows=ROWS) for case in cases.swept(setting))
    made = [(case, nullcontext()) for case in few]
    made += [
        (case, sweep.chosen(case, kind, choice))
        for case in swept
        for kind in sweep.kinds(case)
        for choice in sweep.candidates(case, kind)
    ]
    told = 0
    with _on_a_cpu(launcher):
        for case, how in made:
            plans.plans.clear()
            with how:
                Ours().build(case, make_inputs(case)).call()
            yield from islice(found, told, None)
            told = len(found)
        plans.plans.clear()


@contextmanager
def _on_a_cpu(launcher: Any) -> Iterator[None]:
    """Every call of the package's functions goes to Triton's, with ``launcher`` in place of the real one."""
    from rmsnorm.torch import dispatch, functional, operation
    from rmsnorm.torch.norm import eager
    from rmsnorm.torch.triton import functions, launch

    with ExitStack() as stack:
        for module in (operation, eager):
            stack.enter_context(mock.patch.object(module, "kernels_of", return_value=functions))
        for name, module in [*sys.modules.items()]:  # where no C++ was built, no CPU call asks for a kernel
            if name.startswith("rmsnorm.torch.") and hasattr(module, "eager_way"):
                stack.enter_context(mock.patch.object(module, "eager_way", dispatch._cuda_way))
        stack.enter_context(mock.patch.object(dispatch, "why_no_triton", None))
        stack.enter_context(mock.patch.object(functional, "nodes", None))
        stack.enter_context(mock.patch.object(launch, "INTERPRETED", True))
        stack.enter_context(mock.patch.object(launch, "launcher", launcher))
        yield


def named(job: Job) -> Job:
    """The job with the kernel's module and name in place of the kernel, which cannot be sent to another process."""
    kernel, *rest = job
    return kernel.fn.__module__, kernel.fn.__name__, *rest


def describe(job: Job) -> str:
    kernel, pointers, _, constants, choice = job
    fixed = dict(constants)
    return f"{kernel.fn.__name__} n={fixed.get('N')} {str(pointers[0]).removeprefix('torch.')} {choice}"


def compile_job(job: Job, arch: int) -> dict[str, Any]:
    """Compiles into TRITON_CACHE_DIR; the launcher on the device finds it there.

    In a child: LLVM or ptxas may end their process, and the pool with all its jobs would be lost with it.
    """
    _hash_triton(arch)
    fork = get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_compile, args=(job, arch, theirs))
    child.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f"the compiler's process ended with {child.exitcode}") from None
    child.join()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


@cache
def _hash_triton(arch: int) -> None:
    """What names a kernel in Triton's cache, besides the kernel: once a worker, before its children need it.

    Reading Triton's library of 400 MB takes 0.4 to 0.7 s, as long as compiling a small kernel.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.cache import triton_key

    triton_key()
    make_backend(GPUTarget("cuda", arch, 32)).hash()  # the version that ptxas prints


def _compile(job: Job, arch: int, to: Any) -> None:
    try:
        to.send(_compiled(job, arch))
    except Exception as error:
        to.send(f"{type(error).__name__}: {error}")


def _compiled(job: Job, arch: int) -> dict[str, Any]:
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget

    from rmsnorm.torch.triton import launch

    module, name, pointers, wide, constants, choice = job
    kernel, target = getattr(importlib.import_module(module), name), GPUTarget("cuda", arch, 32)
    source = launch.source(kernel, pointers, wide, constants)
    compiled = triton.compile(source, target=target, options=launch.options(choice, constants, target))
    return {"shared": compiled.metadata.shared, "triton": triton.__version__}
