"""DTensors, FSDP2, a sequence-parallel plan and DistributedDataParallel: two processes with gloo, one start for all."""

import pytest
import torch

import distributed_checks
from processes import together


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_two_processes(tmp_path):
    together(2, distributed_checks.run, 2, str(tmp_path / "store"))
