"""What all tests share: settings of hypothesis, threads, the collector, and code run in an interpreter of its own."""

import gc
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

try:
    import torch
except ImportError:  # NumPy's and JAX's tests run without it (make wheel)
    torch = None

settings.register_profile("rmsnorm", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("rmsnorm")


def pytest_configure(config):
    """The environment of the workers, which the process that starts them decides."""
    gc.disable()  # until all modules are imported: 6 of a worker's 17 s of imports and collection
    own_compiler_cache(config)
    share_processors(config)


def own_compiler_cache(config):
    """A compiler cache of this run alone: Inductor's key does not see what strides an operator's fake gives.

    A graph that an older version of this package left in the usual place would be taken for this one's.
    """
    name = "TORCHINDUCTOR_CACHE_DIR"
    if name not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="rmsnorm-inductor-")
        os.environ[name] = folder.name
        config.add_cleanup(folder.cleanup)


def share_processors(config):
    """With n workers, each has 1/n of the processors.

    OpenMP's threads spin while they wait. Two workers of two threads each on two processors took up to 27 times the
    processor time of one thread each. What depends on threads sets their number itself (``set_threads``).
    """
    workers = len(getattr(config.option, "tx", None) or ())
    if workers:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def pytest_collection_finish():
    keep_what_is_there()
    gc.set_threshold(7000)  # ten times the usual number: half of the time of collections, which tracing needs most
    gc.enable()


def keep_what_is_there():
    """Objects of imported modules stay: the collector need not walk them again, which takes 0.3 s each time."""
    gc.collect()  # what is garbage now must not be kept
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _keep_imports():
    """Also those that a module's tests imported."""
    yield
    keep_what_is_there()


@pytest.fixture(autouse=True)
def _seed():
    if torch is not None:
        torch.manual_seed(20191016)


@pytest.fixture
def set_threads():
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def device_without_room(tmp_path):
    """A device like /dev/full. Root gets one of its own: a defect that replaces devices must not take the machine's."""
    if os.geteuid():
        return Path("/dev/full")
    path = tmp_path / "full"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        path.open("wb").close()
    except OSError as error:
        pytest.skip(f"no device can be made here: {error}")
    return path


@pytest.fixture
def run_python():
    """Runs source in a fresh interpreter, with environment variables; returns its output, fails if it fails."""

    def run(source: str, status: int = 0, **environment: str) -> str:
        here = Path(__file__).parent
        path = os.pathsep.join(filter(None, [str(here / "support"), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, "-c", source],
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=300,  # seconds: ten times what the slowest needs on idle cores
            check=False,
        )
        assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if status == 0 else done.stderr

    return run
