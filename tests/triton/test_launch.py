"""Every kernel launched through Triton's own driver, of each Triton that is served, with a libcuda that records."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="the kernels are Triton's (pip install triton)")

from tritons import OLDEST, ROOT

SUPPORT = ROOT / "tests" / "support"
KERNELS = {
    "backward_kernel",
    "columns_kernel",
    "finish_kernel",
    "forward_kernel",
    "forward_looped_kernel",
    "forward_parts_kernel",
    "forward_persistent_kernel",
    "forward_stream_kernel",
    "gated_backward_kernel",
    "gated_kernel",
    "head_kernel",
    "quantized_kernel",
    "quantized_looped_kernel",
    "rows_kernel",
}


@pytest.fixture(scope="module")
def recording_driver(tmp_path_factory):
    """The folder of a libcuda.so.1 that records launches."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler builds the driver and Triton's launcher; none is here")
    folder, headers = tmp_path_factory.mktemp("driver"), Path(triton.__file__).parent / "backends/nvidia/include"
    library = folder / "libcuda.so.1"
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-Wl,-soname,libcuda.so.1",
        f"-I{headers}",
        "-o",
        library,
        SUPPORT / "recording_driver.c",
    ]
    subprocess.run(command, check=True)
    (folder / "libcuda.so").symlink_to(library.name)
    return folder


@pytest.mark.parametrize("version", ["installed", *OLDEST])
def test_the_driver_gets_what_is_meant(version, recording_driver, run_python):
    """Parameters, grid, threads, shared memory, stream and function of each launch."""
    folder = None if version == "installed" else OLDEST[version]
    if folder and not folder.is_dir():
        pytest.skip(f"Triton {version} is not in {folder}: make {folder.relative_to(ROOT)}")
    said = run_python(
        f"import launches; launches.main({str(recording_driver)!r})",
        PYTHONPATH=os.pathsep.join(map(str, (*filter(None, [folder]), SUPPORT, ROOT / "tools"))),
        TRITON_LIBCUDA_PATH=str(recording_driver),
        TRITON_CACHE_DIR=str(ROOT / "build" / "triton-cache-of-launches" / version),
    )
    first, *names = said.split()
    assert first == "Triton"
    assert set(names[1:]) == KERNELS
    assert names[0] == f"{triton.__version__ if version == 'installed' else version}:"
