"""What building the C++ nodes needs of other versions of torch: headers and four libraries, taken from their wheels.

    python tools/torch_for_nodes.py 2.13.0 2.14.1 --out build/torch

prints the folders as CMake's RMSNORM_TORCH_PACKAGES takes them. Nothing is installed.
"""

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

PYTHON = "3.11"
"""The wheels' Python, whichever Python builds: what was unpacked once serves all. The headers are the same, and the
linker reads only names: nodes for 3.11 and 3.13 need the same ones of torch. This Python has wheels of all versions."""

LIBRARIES = ("libc10.", "libtorch.", "libtorch_cpu.", "libtorch_python.")


def needed(name: str) -> bool:
    """Whether the build reads this member of the wheel."""
    library = name.startswith("torch/lib/") and Path(name).name.startswith(LIBRARIES)
    return library or name == "torch/version.py" or name.startswith("torch/include/")


def unpack(version: str, out: Path) -> Path:
    """The folder ``torch`` of one version for this Python, without what the build does not read."""
    folder = out / version
    if not (folder / "torch" / "version.py").is_file():  # unpacked last
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
        pip += ["--python-version", PYTHON]
        subprocess.run([*pip, f"torch=={version}"], check=True, stdout=sys.stderr)
        (wheel,) = folder.glob("torch-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, sorted(filter(needed, archive.namelist())))
        wheel.unlink()
    return folder / "torch"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", help="versions of torch, from 2.10 on; none: the wheel has no nodes")
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps what was unpacked")
    args = parser.parse_args()
    found = []
    for version in args.versions:
        try:
            found.append(str(unpack(version, args.out.resolve())))
        except subprocess.CalledProcessError:
            print(f"left out: torch {version} has no wheel for Python {PYTHON} and this platform", file=sys.stderr)
    if args.versions and not found:
        sys.exit("none of these versions could be had, and the wheel would have no C++ nodes; see pip's messages above")
    print(";".join(found))


if __name__ == "__main__":
    main()
