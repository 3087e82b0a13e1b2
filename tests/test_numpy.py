"""rmsnorm.numpy: axes, strides, byte orders, `out`, bfloat16 arrays, fork. Values over all cases: test_conformance."""

import math
import threading

import ml_dtypes
import numpy as np
import pytest

import rmsnorm.numpy as rn
from rmsnorm import reference

RNG = np.random.default_rng(20191016)


def close(found, expected, units=16):
    """Within this many u of what is largest."""
    expected = np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.max(np.abs(found - expected), initial=0.0) <= units * 2**-24 * np.max(np.abs(expected), initial=1.0)


@pytest.mark.parametrize("axis", [-1, 0, 1, 2, -2, (0, 1), (1, 2), (0, 2), (-2, -1), (0, 1, 2)], ids=str)
def test_any_axis(axis):
    """Rows are what remains; the weight has the shape of the normalised axes, whose elements p counts in C order."""
    x, dy = RNG.standard_normal((2, 5, 6, 7), np.float32)
    axes = tuple(a % 3 for a in (axis if isinstance(axis, tuple) else (axis,)))
    shape = tuple(x.shape[a] for a in axes)
    n = math.prod(shape)
    g, b = RNG.standard_normal(shape, np.float32), RNG.standard_normal(shape, np.float32)
    others = [a for a in range(3) if a not in axes]

    def rows(array):
        return array.transpose(*others, *axes).reshape(-1, n)

    def back(array):
        moved = array.reshape(*(x.shape[a] for a in others), *shape)
        return moved.transpose(np.argsort([*others, *axes]))

    k = -(-n // 4)
    close(
        rn.rms_norm(x, g, b, axis=axis, eps=1e-5, p=0.25),
        back(reference.rms_norm(rows(x), g.ravel(), b.ravel(), k=k, eps=1e-5)),
    )
    found = rn.rms_norm_backward(dy, x, g, axis=axis, eps=1e-5, p=0.25, bias=True)
    expected = reference.rms_norm_vjp(rows(dy), rows(x), g.ravel(), k=k, eps=1e-5)
    close(found[0], back(expected[0]), 64)
    close(found[1], expected[1].reshape(shape), 64)
    close(found[2], expected[2].reshape(shape), 64)
    close(rn.layer_norm(x, g, b, axis=axis), back(reference.layer_norm(rows(x), g.ravel(), b.ravel(), eps=1e-5)))
    found = rn.layer_norm_backward(dy, x, g, axis=axis, bias=True)
    expected = reference.layer_norm_vjp(rows(dy), rows(x), g.ravel(), eps=1e-5)
    close(found[0], back(expected[0]), 64)
    close(found[1], expected[1].reshape(shape), 64)
    normed, stream = rn.add_rms_norm(x, dy, g, axis=axis, eps=1e-5)
    assert np.array_equal(stream, x + dy)
    assert np.array_equal(normed, rn.rms_norm(stream, g, axis=axis, eps=1e-5))


@pytest.mark.parametrize("axis", [-1, 0, (0, 2), (0, 1, 2)], ids=str)
def test_codes_of_any_axis(axis):
    """Codes and scales lie where the elements and the rows do. Values: torch/test_quantized."""
    x, residual = RNG.standard_normal((2, 5, 6, 7), np.float32)
    axes = axis if isinstance(axis, tuple) else (axis,)
    g = RNG.standard_normal([x.shape[a] for a in axes], np.float32)
    q, scale = rn.rms_norm_quantized(x, g, axis=axis, eps=1e-5)
    y = rn.rms_norm(x, g, axis=axis, eps=1e-5)
    assert scale.shape == np.max(y, axis=axis, keepdims=True).shape
    assert np.allclose(scale, np.max(np.abs(y), axis=axis, keepdims=True) / 127, rtol=1e-6)
    assert (np.abs(q * scale - y) <= 0.5001 * scale).all()
    found = rn.add_rms_norm_quantized(x, residual, g, axis=axis, eps=1e-5)
    assert np.array_equal(found[2], x + residual)
    for one, two in zip(found, rn.rms_norm_quantized(found[2], g, axis=axis, eps=1e-5), strict=False):
        assert np.array_equal(one, two)


def test_codes_of_a_wrong_dtype():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(NotImplementedError, match=r"numpy\.int8 or ml_dtypes\.float8_e4m3fn, got uint8"):
        rn.rms_norm_quantized(x, dtype=np.uint8)
    for wrong in ("code", 7):
        with pytest.raises(TypeError, match=r"dtype must be numpy\.int8"):
            rn.add_rms_norm_quantized(x, x, dtype=wrong)
    with pytest.raises(ValueError, match="residual must have the shape of x"):
        rn.add_rms_norm_quantized(x, x[:1])


@pytest.mark.parametrize("axis", [-1, 0, (0, 2)], ids=str)
def test_a_gain_for_each_head(axis):
    """Each head as if it were alone, the heads being the last axis that is not normalised."""
    x, dy = RNG.standard_normal((2, 5, 3, 7), np.float32)
    axes = tuple(a % 3 for a in (axis if isinstance(axis, tuple) else (axis,)))
    heads = max(a for a in range(3) if a not in axes)
    shape = tuple(x.shape[a] for a in axes)
    g, b = RNG.standard_normal((2, x.shape[heads], *shape), np.float32)
    y = rn.rms_norm(x, g, b, axis=axis, eps=1e-5, p=0.5)
    centred = rn.layer_norm(x, g, b, axis=axis)
    dx, dweight, dbias = rn.rms_norm_backward(dy, x, g, axis=axis, eps=1e-5, p=0.5, bias=True)
    assert dweight.shape == dbias.shape == g.shape
    for h in range(x.shape[heads]):
        own, gradient = x.take([h], heads), dy.take([h], heads)
        assert np.array_equal(y.take([h], heads), rn.rms_norm(own, g[h], b[h], axis=axis, eps=1e-5, p=0.5))
        assert np.array_equal(centred.take([h], heads), rn.layer_norm(own, g[h], b[h], axis=axis))
        alone = rn.rms_norm_backward(gradient, own, g[h], axis=axis, eps=1e-5, p=0.5, bias=True)
        assert np.array_equal(dx.take([h], heads), alone[0])
        assert np.array_equal(dweight[h], alone[1])
        assert np.array_equal(dbias[h], alone[2])
    with pytest.raises(ValueError, match="bias must have the shape of weight"):
        rn.rms_norm(x, g, b[0], axis=axis)


VIEWS = {
    "rows back": lambda a: a[::-1],
    "elements back": lambda a: a[:, ::-1],
    "strided": lambda a: a[::3, ::2],
    "transposed": lambda a: a.T,
    "inner": lambda a: a[1:, 1:],
    "one row": lambda a: np.broadcast_to(a[:1], a.shape),
    "one column": lambda a: np.broadcast_to(a[:, :1], a.shape),
    "fortran": np.asfortranarray,
    "unaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
    "other endian": lambda a: a.astype(a.dtype.newbyteorder()),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=str)
def test_any_memory(view, dtype):
    """Negative steps, bytes that are not aligned to elements, foreign byte order: the result of a plain copy."""
    x = view(RNG.standard_normal((9, 20)).astype(dtype))
    plain = np.ascontiguousarray(x.astype(dtype))
    g = RNG.standard_normal(x.shape[1]).astype(dtype)
    dy = RNG.standard_normal(x.shape).astype(dtype)
    assert np.array_equal(rn.rms_norm(x, g, eps=1e-5), rn.rms_norm(plain, g, eps=1e-5))
    assert np.array_equal(rn.layer_norm(x, g), rn.layer_norm(plain, g))
    for given, copied in (((dy, x), (dy, plain)), ((x, dy), (plain, dy))):
        found, expected = (rn.rms_norm_backward(*arrays, g, eps=1e-5) for arrays in (given, copied))
        assert found[2] is expected[2] is None
        assert np.array_equal(found[0], expected[0])
        assert np.array_equal(found[1], expected[1])
    weight = view(RNG.standard_normal((9, 20)).astype(dtype))[1][: x.shape[1]]
    assert np.array_equal(rn.rms_norm(x, weight, eps=1e-5), rn.rms_norm(plain, np.array(weight, dtype), eps=1e-5))


def test_read_only_arrays_and_lists():
    x = RNG.standard_normal((3, 8), np.float32)
    x.setflags(write=False)
    expected = rn.rms_norm(np.array(x), eps=1e-5)
    assert np.array_equal(rn.rms_norm(x, eps=1e-5), expected)
    assert np.array_equal(
        rn.rms_norm(x.astype(np.float64).tolist(), eps=1e-5), rn.rms_norm(x.astype(np.float64), eps=1e-5)
    )


def test_bfloat16():
    """ml_dtypes' arrays go in and come out, computed in float32 and rounded once."""
    x, dy = (RNG.standard_normal((4, 33)).astype(ml_dtypes.bfloat16) for _ in range(2))
    g = RNG.standard_normal(33, np.float32)
    y = rn.rms_norm(x, g, eps=1e-5)
    dx, dg, _ = rn.rms_norm_backward(dy, x, g, eps=1e-5)
    assert y.dtype == dx.dtype == ml_dtypes.bfloat16
    assert dg.dtype == np.float32
    wide = rn.rms_norm(x.astype(np.float32), g, eps=1e-5).astype(ml_dtypes.bfloat16)
    assert np.array_equal(y, wide)


@pytest.mark.parametrize("operation", [rn.rms_norm, rn.layer_norm])
def test_out(operation):
    x, g, b = RNG.standard_normal((5, 12), np.float32), *RNG.standard_normal((2, 12), np.float32)
    expected = operation(x, g, b)
    strided = np.full((5, 36), np.nan, np.float32)
    for out in (np.full_like(x, np.nan), strided[:, 12:24]):
        assert operation(x, g, b, out=out) is out
        assert np.array_equal(out, expected)
    assert np.isnan(strided[:, :12]).all()
    assert np.isnan(strided[:, 24:]).all()
    assert operation(x, g, b, out=x) is x
    assert np.array_equal(x, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16], ids=str)
def test_out_in_any_memory(dtype):
    """Bytes that are not aligned to elements, rows with gaps, backwards and transposed."""
    x, g = RNG.standard_normal((6, 8)).astype(dtype), RNG.standard_normal(8).astype(dtype)
    size = x.itemsize
    expected = rn.rms_norm(x, g, eps=1e-5)
    memory = np.zeros(6 * 8 * size + 1, np.uint8)
    for out in (
        memory[1:].view(dtype).reshape(6, 8),
        np.zeros((12, 8), dtype)[::-2],
        np.zeros((6, 16), dtype)[:, ::-2],
        np.zeros((8, 6), dtype).T,
    ):
        assert rn.rms_norm(x, g, eps=1e-5, out=out) is out
        assert np.array_equal(out, expected)


@pytest.mark.parametrize(
    "out",
    [
        np.empty((5, 12), np.dtype(np.float32).newbyteorder()),
        np.empty((5, 11), np.float32),
        np.empty((12, 5), np.float32).T[:4],
        np.empty((5, 12), np.float64),
        np.broadcast_to(np.empty(12, np.float32), (5, 12)),
    ],
    ids=["byte order", "shape", "rows", "dtype", "read-only"],
)
def test_out_that_does_not_fit(out):
    with pytest.raises((ValueError, TypeError), match="out"):
        rn.rms_norm(np.ones((5, 12), np.float32), out=out)


def test_out_that_overlaps_partly():
    memory = np.ones(100, np.float32)
    with pytest.raises(ValueError, match="out must not share memory with"):
        rn.rms_norm(memory[:60].reshape(5, 12), out=memory[12:72].reshape(5, 12))
    with pytest.raises(ValueError, match="out must not share memory with"):
        rn.rms_norm(np.ones((5, 12), np.float32), memory[:12], out=memory[:60].reshape(5, 12))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8)], ids=str)
def test_no_rows(shape):
    x, g = np.empty(shape, np.float32), np.ones(8, np.float32)
    assert rn.rms_norm(x, g).shape == shape
    for backward in (rn.rms_norm_backward, rn.layer_norm_backward):
        assert [None if a is None else a.shape for a in backward(x, x)] == [shape, None, None]
    dx, dg, db = rn.rms_norm_backward(x, x, g, bias=True)
    assert dx.shape == shape
    assert np.array_equal(dg, np.zeros(8))
    assert np.array_equal(db, np.zeros(8))


@pytest.mark.parametrize("dtype", [int, bool, complex, np.longdouble, str], ids=str)
def test_dtypes_that_are_not_served(dtype):
    x = np.ones((2, 4), dtype)
    with pytest.raises(TypeError, match=str(x.dtype)):
        rn.rms_norm(x)
    with pytest.raises(TypeError, match=str(x.dtype)):
        rn.layer_norm(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": np.ones(3, np.float32)}, r"\(4,\).*\(3,\)"),
        ({"bias": np.ones((1, 4), np.float32)}, r"\(4,\).*\(1, 4\)"),
        ({"weight": np.ones(4, int)}, "int64"),
        ({"p": 0.0}, "p .*0"),
        ({"p": 1.5}, "p .*1.5"),
        ({"eps": -1e-5}, "eps .*-1e-05"),
        ({"eps": math.nan}, "eps .*nan"),
        ({"axis": 2}, "axis .*2"),
        ({"axis": (0, 0)}, "axis .*0"),
        ({"axis": ()}, "axis"),
    ],
    ids=str,
)
def test_wrong_arguments(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        rn.rms_norm(np.ones((2, 4), np.float32), **options)


def test_a_gradient_of_another_shape():
    with pytest.raises(ValueError, match=r"dy.*\(2, 4\).*\(2, 3\)"):
        rn.rms_norm_backward(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match=r"residual.*\(2, 4\).*\(1, 4\)"):
        rn.add_rms_norm(np.ones((2, 4), np.float32), np.ones((1, 4), np.float32))


def test_threads_at_once():
    """Callers from several Python threads share the pool and get what a lone call gets."""
    data = [RNG.standard_normal((600, 257), np.float32) for _ in range(4)]
    expected, wrong = [(rn.rms_norm(x), rn.rms_norm_backward(x, x)[0]) for x in data], []

    def repeat(i):
        for _ in range(20):
            found = rn.rms_norm(data[i]), rn.rms_norm_backward(data[i], data[i])[0]
            if not all(np.array_equal(a, b) for a, b in zip(found, expected[i], strict=True)):
                wrong.append(i)

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FORK = """
import os, signal, sys
import numpy as np
import rmsnorm.numpy as rn
x = np.random.default_rng(0).standard_normal((4000, 256)).astype(np.float32)
g = np.arange(256, dtype=np.float32)
before = rn.rms_norm(x, g), rn.rms_norm_backward(x, x, g)[1]
def same():
    after = rn.rms_norm(x, g), rn.rms_norm_backward(x, x, g)[1]
    return all(np.array_equal(a, b) for a, b in zip(before, after))
child = os.fork()
if child == 0:
    signal.alarm(60)  # a pool whose threads are gone would wait for ever
    grandchild = os.fork()
    if grandchild == 0:
        os._exit(0 if same() else 1)
    ok = same() and os.waitpid(grandchild, 0)[1] == 0
    os._exit(0 if ok else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert same()
"""

MULTIPROCESSING = """
import multiprocessing
import numpy as np
import rmsnorm.numpy as rn
x = np.random.default_rng(0).standard_normal((4000, 256)).astype(np.float32)
def work(i):
    return rn.rms_norm(x * (i + 1))
if __name__ == "__main__":
    expected = [work(i) for i in range(3)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(work, range(3)).get(60)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected))
"""


def test_a_daemon_thread_that_computes_does_not_abort_the_process(run_python):
    """Python ends such a thread when it asks for the interpreter's lock; before 3.14 by unwinding its stack."""
    source = """
import threading
import time
import numpy as np
from rmsnorm.numpy import rms_norm
x = np.ones((2560, 1024), np.float32)
def work():
    while True:
        rms_norm(x)
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
"""
    for _ in range(2):
        run_python(source)


@pytest.mark.parametrize("source", [FORK, MULTIPROCESSING], ids=["os.fork", "multiprocessing"])
def test_a_forked_child_computes(run_python, source):
    """After the pool was used: its threads do not live on in the child, which needs its own."""
    run_python(source, RMSNORM_NUM_THREADS="3")


@pytest.mark.parametrize("name", ["x", "weight", "bias"])
def test_what_numpy_makes_no_array_of(name):
    """A tensor of torch in bfloat16 or with a gradient, and rows of unequal length: the error names the argument."""
    torch = pytest.importorskip("torch")
    arguments = {"x": np.ones((3, 4)), "weight": np.ones(4), "bias": np.ones(4)}
    for wrong in (torch.ones(4).bfloat16(), torch.ones(4, requires_grad=True), [[1.0, 2.0], [3.0]]):
        with pytest.raises(TypeError, match=f"^{name} must be an array, .*got {type(wrong).__name__}, .*says: "):
            rn.rms_norm(**arguments | {name: wrong})
