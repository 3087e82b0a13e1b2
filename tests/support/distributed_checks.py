"""What test_distributed.py runs in two processes: every check is a function of a mesh of both and a mesh of one."""

import os
import re

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

from rmsnorm import torch as rt

SHAPE = 5, 3, 4, 8  # 5 items are 3 and 2 in two processes
CALLS = {
    "rms_norm": lambda x, z, w, b: rt.rms_norm(x, 8, w, 1e-5, bias=b, p=0.3, zero_centered=True),
    "layer_norm": lambda x, z, w, b: rt.layer_norm(x, 8, w, b),
    "add_rms_norm": lambda x, z, w, b: rt.add_rms_norm(x, z, (8,), w, 1e-5, bias=b),
    "rms_norm_gated": lambda x, z, w, b: rt.rms_norm_gated(x, z, 8, w, groups=2),
    "LayerNorm": lambda x, z, w, b: torch.func.functional_call(rt.LayerNorm(8), {"weight": w, "bias": b}, x),
}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def arguments(*of_parameters):
    return [
        random(*SHAPE, seed=1),
        random(*SHAPE, seed=2),
        random(*of_parameters, seed=3),
        random(*of_parameters, seed=4),
    ]


def tensors(result):
    return result if isinstance(result, tuple) else (result,)


def loss(result):
    return sum((each * random(*SHAPE, seed=7 + i)).sum() for i, each in enumerate(map(whole, tensors(result))))


def whole(t):
    return t.full_tensor() if isinstance(t, DTensor) else t


def same(found, expected):
    torch.testing.assert_close(whole(found), expected, rtol=1e-5, atol=1e-5)


def compare(call, mesh, placement, parameters=(8,), where=None, frozen=(), collectives=0):
    """``call`` on DTensors, against the same on whole tensors; ``collectives`` are those of the forward pass."""
    plain = [t.requires_grad_(i not in frozen) for i, t in enumerate(arguments(*parameters))]
    wheres = [placement, placement, where or Replicate(), where or Replicate()]
    given = [
        distribute_tensor(t.detach(), mesh, [w]).requires_grad_(t.requires_grad)
        for t, w in zip(plain, wheres, strict=True)
    ]
    if collectives is not None:  # the mode is seen by kernels and compilers
        with CommDebugMode() as communication:
            call(*given)
        assert communication.get_total_counts() == collectives, communication.get_comm_counts()
    results = tensors(call(*given))
    expected = tensors(call(*plain))
    for found, one in zip(results, expected, strict=True):
        assert (found.shape, found.dtype, found.stride()) == (one.shape, one.dtype, one.stride())
        same(found, one)
    loss(expected).backward()
    loss(results).backward()
    for a, b in zip(given, plain, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if b.grad is not None:
            same(a.grad, b.grad)
    return results


def check_whole_rows_take_no_collective(both, one):
    for name, call in CALLS.items():
        for mesh in (both, one):
            for placement in (Shard(0), Shard(1), Replicate()):
                for result in tensors(compare(call, mesh, placement)):
                    assert result.placements == (placement,), (name, result.placements)


def check_a_frozen_gain(both, one):
    for call in CALLS.values():
        compare(call, both, Shard(0), frozen=(2, 3))
        compare(call, both, Shard(0), frozen=(0, 1))


def check_split_rows_are_gathered(both, one):
    for name, call in CALLS.items():
        (result, *_) = compare(call, both, Shard(3), collectives=2 if name in ("add_rms_norm", "rms_norm_gated") else 1)
        assert result.placements == (Replicate(),)


def check_gains_of_heads_lie_where_their_heads_do(both, one):
    for name in ("rms_norm", "layer_norm", "add_rms_norm"):
        for placement, where in ((Shard(2), Shard(0)), (Shard(0), Replicate())):
            (result, *_) = compare(CALLS[name], both, placement, (4, 8), where)
            assert result.placements == (placement,)


def check_sums_and_mixed_placements(both, one):
    x, z, w, _ = arguments(8)
    part = DTensor.from_local(x / 2, both, [Partial()])
    stream = distribute_tensor(z, both, [Shard(1)])
    gain = distribute_tensor(w, both, [Replicate()])
    for found, expected in zip(rt.add_rms_norm(part, stream, 8, gain), rt.add_rms_norm(x, z, 8, w), strict=True):
        assert found.placements == (Shard(1),)
        same(found, expected)
    q, scale = rt.rms_norm_quantized(stream, 8, gain)
    for found, expected in zip((q, scale), rt.rms_norm_quantized(z, 8, w), strict=True):
        assert found.placements == (Shard(1),)
        assert torch.equal(whole(found), expected)
    results = rt.add_rms_norm_quantized(stream, stream, 8, gain)
    for found, expected in zip(results, rt.add_rms_norm_quantized(z, z, 8, w), strict=True):
        assert found.placements == (Shard(1),)
        assert torch.equal(whole(found), expected)


def check_two_dimensions_of_a_mesh(both, one):
    mesh = init_device_mesh("cpu", (2, 1))
    x, _, w, _ = arguments(8)
    given = distribute_tensor(x, mesh, [Shard(1), Shard(0)])
    gain = distribute_tensor(w, mesh, [Replicate(), Replicate()]).requires_grad_()
    y = rt.rms_norm(given, 8, gain)
    assert y.placements == given.placements
    same(y, rt.rms_norm(x, 8, w))


def check_what_is_refused_is_said(both, one):
    x, z, w, _ = arguments(8)
    given = distribute_tensor(x, both, [Shard(0)])
    gain = distribute_tensor(w, both, [Replicate()])
    elsewhere = distribute_tensor(z, one, [Replicate()])
    for call, says in (
        (lambda: rt.rms_norm(given, 8, w), "weight must be a DTensor where another argument is one"),
        (lambda: rt.rms_norm(x, 8, gain), "input must be a DTensor where another argument is one"),
        (lambda: rt.add_rms_norm(given, elsewhere, 8), "residual must have the device mesh"),
        (lambda: rt.rms_norm(given, 8, out=given), "out= takes neither nested tensors nor DTensors"),
        (lambda: rt.add_rms_norm(given, given, 8, inplace=True), "inplace=True takes neither nested"),
        (lambda: rt.rms_norm(given, 9), "normalized_shape = (9,)"),
    ):
        with pytest.raises((TypeError, ValueError, NotImplementedError), match=re.escape(says)):
            call()


def check_compiled(both, one):
    def run(x, z, w, b):
        y, s = rt.add_rms_norm(x, z, 8, w, bias=b, p=0.5)
        return rt.rms_norm_gated(rt.layer_norm(y, 8, w, b), s, 8, w)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for placement in (Shard(0), Shard(3)):
        compare(compiled, both, placement, collectives=None)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down, self.last = (
            rt.RMSNorm(8, p=0.5),
            nn.Linear(8, 16),
            nn.Linear(16, 8),
            rt.LayerNorm(8),
        )
        for i, parameter in enumerate(self.parameters()):
            parameter.data.copy_(random(*parameter.shape, seed=20 + i))

    def forward(self, x):
        return self.last(x + self.down(self.up(self.norm(x)).relu()))


def step(model, x):
    y = model(x)
    y.square().mean().backward()
    return y


def check_fully_shard(both, one):
    expected, model = Block(), Block()
    for module in (model.norm, model):
        fully_shard(module, mesh=both)
    x = random(4, 8, seed=9)
    wanted = step(expected, x)
    same(step(model, x), wanted)
    assert isinstance(model.norm, rt.RMSNorm)
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert isinstance(a, DTensor)
        same(a.grad, b.grad)


def check_sequence_parallel(both, one):
    expected, model = Block(), Block()
    plan = {
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
        "last": SequenceParallel(),
    }
    parallelize_module(model, both, plan)
    x = random(2, 6, 8, seed=10)
    wanted = expected(x)
    y = model(distribute_tensor(x, both, [Shard(1)]))
    assert y.placements == (Shard(1),)
    same(y, wanted)
    weights = random(*wanted.shape, seed=11)
    (wanted * weights).sum().backward()
    (y * distribute_tensor(weights, both, [Shard(1)])).sum().full_tensor().backward()
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        same(a.grad, b.grad)


def check_recurrent_layers_under_ddp(both, one):
    for kind in (rt.GRU, rt.LSTM):
        torch.manual_seed(0)
        module = kind(5, 7, 2, dtype=torch.float64)
        x = torch.randn(6, 4, 5, dtype=torch.float64)
        alone = torch.autograd.grad(module(x)[0].square().sum() / 2, list(module.parameters()))
        parallel = nn.parallel.DistributedDataParallel(module)
        mine = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
        parallel(x[:, mine])[0].square().sum().backward()
        for p, gradient in zip(module.parameters(), alone, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=0, atol=1e-12)


def run(rank, processes, path):
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=processes)
    meshes = init_device_mesh("cpu", (processes, 1), mesh_dim_names=("both", "one"))
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            torch.manual_seed(0)
            try:
                check(meshes["both"], meshes["one"])
            except Exception as error:
                error.add_note(f"in {name}, process {rank}")
                raise
    dist.destroy_process_group()
