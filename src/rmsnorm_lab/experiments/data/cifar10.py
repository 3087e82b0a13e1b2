"""CIFAR-10 as it is distributed: `cifar-10-python.tar.gz`, or the folder `cifar-10-batches-py` unpacked from it.

The batches are pickles. They are read by an unpickler that makes NumPy arrays and nothing else, so a manipulated file
cannot run code. The archive must have its published MD5. An unpacked folder with other MD5s is read if it is well
formed; its images are then marked as not official.
"""

import hashlib
import io
import pickle
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.digits import Images
from rmsnorm_lab.experiments.data.input_files import names_in, read_bytes
from rmsnorm_lab.experiments.data.lines import digest

ARCHIVE, ARCHIVE_MD5 = "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"
TRAIN, TEST, META = tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"
MD5S = dict(
    zip(
        (*TRAIN, TEST, META),
        (
            "c99cafc152244af753f735de768cd75f",
            "d4bba439e000b95fd0a9bffe97cbabec",
            "54ebc095f3ab1f0389bbae665268c751",
            "634d18415352ddfa80567beed471001a",
            "482c414d41f54cd18b22e5b47cb7c3cb",
            "40351d587109b95175f43aff81a1287e",
            "5ff9c542aee3614f3951f8cda6e48888",
        ),
        strict=True,
    )
)
"""The MD5 of each member, as torchvision publishes them."""
SIDE, CHANNELS, CLASSES = 32, 3, 10
REMEDY = "Unpack the official cifar-10-python.tar.gz again, or pass that file itself."


def load(path: Path) -> Images:
    """Training and test images as float32 (N, 3, 32, 32), (pixel − 127.5) / 128, and their labels 0 to 9."""
    contents, where = _contents(path)
    meta = _unpickled(contents[META], where / META)
    expected = meta.get("num_cases_per_batch")
    if not isinstance(expected, int) or expected < 1:
        raise UserError(f"{str(where / META)!r} must say num_cases_per_batch; got {expected!r}. {REMEDY}")
    batches = {name: _batch(contents[name], where / name, expected) for name in (*TRAIN, TEST)}
    return Images(
        np.concatenate([batches[name][0] for name in TRAIN]),
        np.concatenate([batches[name][1] for name in TRAIN]),
        *batches[TEST],
        CLASSES,
        digest(contents.items()),
        official=all(_md5(content) == MD5S[name] for name, content in contents.items()),
    )


def _contents(path: Path) -> tuple[dict[str, bytes], Path]:
    """The bytes of each member, and the folder or archive that holds them."""
    if path.is_dir():
        for folder in (path, path / FOLDER):
            present = names_in(folder) if folder.is_dir() else []
            if META in present or TRAIN[0] in present:
                if missing := [name for name in (*TRAIN, TEST, META) if name not in present]:
                    raise UserError(f"{str(folder)!r} lacks {', '.join(missing)} of CIFAR-10. {REMEDY}")
                return {name: read_bytes(folder / name) for name in (*TRAIN, TEST, META)}, folder
        if not (path / ARCHIVE).exists():
            raise UserError(
                f"--data must name {ARCHIVE}, the folder {FOLDER}, or a folder that holds one of them; {str(path)!r} "
                "holds neither. Check the path."
            )
        path = path / ARCHIVE
    if not path.exists():
        raise UserError(
            f"--data must name {ARCHIVE} or the folder {FOLDER}; {str(path)!r} does not exist. Check the path."
        )
    content = read_bytes(path)
    if (found := _md5(content)) != ARCHIVE_MD5:
        raise UserError(
            f"{str(path)!r} must have the MD5 {ARCHIVE_MD5} of the official archive; it has {found}. It is cut short, "
            "or it is another file. Download it again."
        )
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            files = {name: archive.extractfile(f"{FOLDER}/{name}") for name in (*TRAIN, TEST, META)}
            return {name: file.read() for name, file in files.items() if file is not None}, path
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise UserError(f"{str(path)!r} must be the official archive: {error}. Download it again.") from None


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class _ArraysOnly(pickle.Unpickler):
    """Finds the classes of a pickled NumPy array and no others. Python 2 and Python 3 use the same names for them."""

    KNOWN = {  # noqa: RUF012  # read only
        "_reconstruct": np.empty(0).__reduce__()[0],
        "ndarray": np.ndarray,
        "dtype": np.dtype,
    }
    MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")

    def find_class(self, module: str, name: str) -> Any:
        if module in self.MODULES and name in self.KNOWN:
            return self.KNOWN[name]
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in Python 2's protocols
            return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 batch needs")


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}, which no CIFAR-10 batch needs")
    return text.encode("latin1")


def _unpickled(content: bytes, path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy ≥ 2.4: the official pickles give dtype's align as an int
            found = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{str(path)!r} must be a batch of CIFAR-10: {error}. {REMEDY}") from None
    if not isinstance(found, dict):
        raise UserError(f"{str(path)!r} must hold a dict; it holds {type(found).__name__}. {REMEDY}")
    return found


def _batch(content: bytes, path: Path, expected: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    found = _unpickled(content, path)
    data, labels = found.get("data"), found.get("labels")
    pixels = CHANNELS * SIDE * SIDE
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (expected, pixels):
        what = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else repr(type(data).__name__)
        raise UserError(f"{str(path)!r} must hold data, uint8 ({expected}, {pixels}); it holds {what}. {REMEDY}")
    if not isinstance(labels, list) or len(labels) != expected:
        what = f"{len(labels)}" if isinstance(labels, list) else repr(type(labels).__name__)
        raise UserError(f"{str(path)!r} must hold a list of {expected} labels; it holds {what}. {REMEDY}")
    for record, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label < CLASSES:
            raise UserError(
                f"{str(path)!r}, record {record}: a label must be 0 to {CLASSES - 1}; got {label!r}. {REMEDY}"
            )
    images = (data.astype(np.float32) - 127.5) / 128
    return images.reshape(-1, CHANNELS, SIDE, SIDE), np.array(labels, dtype=np.int64)
