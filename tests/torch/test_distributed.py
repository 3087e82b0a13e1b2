"""DTensors, FSDP2 and a sequence-parallel plan, in two processes with gloo (one start for all checks)."""

import pytest
import torch

import distributed_checks


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_two_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.multiprocessing.spawn(distributed_checks.run, (2, str(tmp_path / "store")), nprocs=2)
