"""Fixtures of several files."""

from pathlib import Path

import pytest
import torch

from parallel_files import DE, EN, write


@pytest.fixture(scope="module", autouse=True)
def _own_threads():
    """The commands set the number of torch's threads for their process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """Plain parallel text: three sentences each for training, validation and test."""
    for split in ("train", "valid", "test"):
        write(tmp_path, f"{split}.en", [f"{split}: {line}" for line in EN])
        write(tmp_path, f"{split}.de", [f"{split}: {line}" for line in DE])
    return tmp_path


@pytest.fixture
def sacrebleu_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of sacrebleu."""
    place = tmp_path / "sacrebleu"
    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(place))
    return place


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """(task) -> (folder of its only run, data), trained once."""
    from trained_runs import train  # needs packages without which the tests that use it are skipped

    made = {}

    def run(task):
        if task not in made:
            made[task] = train(task, tmp_path_factory.mktemp(task))
        return made[task]

    return run
