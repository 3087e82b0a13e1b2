"""The launch choices and the layout of rows, which are computed on the host."""

import math

import pytest
import torch

from rmsnorm.torch.triton import choices

pytest.importorskip("triton", reason="layout and launch need Triton")

from rmsnorm.torch.triton import layout

LENGTHS = [*range(1, 70), 127, 128, 129, 1000, 1023, 4096, 5120, 8191, 8192, 8193, 16384, 16385, 131072, 1_000_003]


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("warp_size", [32, 64])
def test_every_choice_can_be_launched(itemsize, warp_size):
    for n in LENGTHS:
        plain = [choices.gated_forward(n, itemsize, warp_size)]
        summed = [choices.gated_backward(n, itemsize, warp_size)]
        for aligned in (False, True):
            plain += [kind(n, itemsize, aligned, warp_size) for kind in (choices.forward, choices.quantized)]
            summed += [choices.backward_rows(itemsize, aligned, warp_size)]
            for wanted in [(c, s, aligned, warp_size) for c in (False, True) for s in (0, 1, 2)]:
                summed += [choices.backward(n, itemsize, *wanted), choices.backward_columns(itemsize, *wanted)]
        plain, summed = ([c for c in found if c is not None] for found in (plain, summed))
        for choice in plain + summed:
            assert choice.block & (choice.block - 1) == 0
            assert choice.warps in (1, 2, 4, 8, 16, 32)
            assert choice.looped or choice.block >= n
            assert choice.looped or choice.block < 2 * max(16, n)
            assert choice.rows >= 1
            assert choice.rows == 1 or not choice.looped
            # Every thread has something to read, and a program no more than a multiprocessor can hold.
            assert warp_size * choice.warps <= choice.rows * choice.block <= 16384
        for choice in summed:
            threads = choice.warps * warp_size * choice.programs
            assert threads * choice.registers <= choices.REGISTERS
            assert choice.registers >= 80 or warp_size == 64


def test_the_lengths_of_the_targets_stay_in_registers():
    for n in (64, 128, 256, 1024, 2048, 4096, 8192, 16384):
        assert not choices.forward(n, 2).looped
        assert choices.backward(n, 2) is not None
        assert choices.gated_forward(n, 2) is not None
        assert n > 8192 or choices.gated_backward(n, 2) is not None
    assert choices.forward(32768, 2).looped
    assert choices.backward(32768, 2) is None
    assert choices.forward(128, 2).rows > 1


def test_a_gradient_grid_is_resident_and_leaves_no_program_idle():
    choice = choices.backward(4096, 2)
    assert choices.grid(choice, 100_000, 1, 132) == choice.programs * 132
    assert choices.grid(choice, 5, 1, 132) == 5
    assert choices.grid(choice, 1, 1, 132) == 1
    for heads in (1, 3, 8, 32, 1000):
        for tokens in (1, 2, 7, 1000):
            programs = choices.grid(choices.backward(128, 2), heads * tokens, heads, 132)
            assert programs % heads == 0
            assert 0 < programs // heads <= tokens  # each has a tile: its partial row is written
    columns = choices.backward_columns(2)
    assert choices.grid(columns, 100_000, 1, 132, 64) == columns.programs * 132 // 64
    assert choices.grid(columns, 100_000, 1, 132, 1000) == 1


def offsets(tensor, dims, folded, place):
    (middle, inner), strides, _ = folded
    outer_stride, middle_stride, inner_stride = strides[place]
    rows = tensor.numel() // math.prod(tensor.shape[tensor.dim() - dims :])
    return [
        r % inner * inner_stride + r // inner % middle * middle_stride + r // inner // middle * outer_stride
        for r in range(rows)
    ]


@pytest.mark.parametrize("ordered", [False, True])
def test_rows_are_found_where_they_lie(ordered):
    packed = torch.arange(2 * 5 * 3 * 4 * 8).view(2, 5, 3, 4, 8)
    q = packed[:, :, 0]  # (batch, time, heads, n) of a packed q, k, v
    cases = [(q,), (q.transpose(1, 2),), (q, q.contiguous()), (q[:, :3],), (q[:1, :, :1],), (packed.view(-1, 8),)]
    for tensors in cases:
        folded = layout.levels(tensors, 1, ordered)
        assert folded is not None
        for place, t in enumerate(tensors):
            memory = torch.as_strided(t, (t.untyped_storage().size() // t.element_size(),), (1,), 0)
            rows = [memory[t.storage_offset() + offset].item() for offset in offsets(t, 1, folded, place)]
            expected = t[..., 0].flatten().tolist()
            assert (rows if ordered else sorted(rows)) == (expected if ordered else sorted(expected))


def test_slices_of_packed_tensors_fold():
    q = torch.empty(2, 5, 3, 4, 8)[:, :, 0]
    assert layout.levels((q,), 1, False)[2] == 2
    assert layout.levels((q.transpose(1, 2),), 1, False)[2] == 2  # numbered as in memory
    assert layout.levels((q.contiguous(), q.transpose(1, 2).contiguous().transpose(1, 2)), 1, True)[2] == 3
    assert layout.levels((torch.empty(6, 8),), 1, False)[2] == 1
    assert layout.levels((torch.empty(8),), 1, False)[2] == 1
    spread = torch.empty(2, 2, 2, 2, 2, 2, 2, 2, 8)[:, 0, :, 0, :, 0, :, 0]
    assert layout.levels((spread,), 1, True) is None


def test_fewer_tiles_are_copied_ahead_where_shared_memory_is_small():
    choice = choices.backward(7168, 2)
    assert choice.stages == 4
    assert choices.fitted(choice, 6, 228 << 10) == choice  # x, dy and another gradient of an H100
    assert choices.fitted(choice, 6, 100 << 10).stages == 3  # of consumer cards
    assert choices.fitted(choice, 6, 1).stages == 1
    for n in (64, 128, 256, 1000, 4096, 8192):
        assert choices.fitted(choices.backward(n, 2), 6, 228 << 10) == choices.backward(n, 2)
