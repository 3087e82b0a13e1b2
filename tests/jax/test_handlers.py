"""The C++ side of rmsnorm.jax: the declared ABI, arithmetic on XLA's threads, registration."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'rmsnorm[jax]'")

import rmsnorm.jax as rj
from rmsnorm import info, native, reference
from rmsnorm.jax import kernels

DECLARED = Path(info.__file__).parent / "jax" / "xla_ffi.h"

SAME = """
#include "{declared}"
#include "xla/ffi/api/c_api.h"
namespace ours = rmsnorm::xla_ffi;
#define SIZE(a, b) static_assert(sizeof(ours::a) == sizeof(XLA_FFI_##b), #a)
#define AT(a, m, b, n) static_assert(offsetof(ours::a, m) == offsetof(XLA_FFI_##b, n), #a "." #m)
#define NUMBER(a, b) static_assert(int(ours::a) == int(XLA_FFI_##b), #a)
static_assert(sizeof(int) == sizeof(XLA_FFI_DataType) && sizeof(int) == sizeof(XLA_FFI_ArgType));
static_assert(sizeof(int) == sizeof(XLA_FFI_ExecutionStage) && sizeof(int) == sizeof(XLA_FFI_AttrType));
NUMBER(MAJOR, API_MAJOR);
NUMBER(METADATA, Extension_Metadata);
NUMBER(INVALID_ARGUMENT, Error_Code_INVALID_ARGUMENT);
NUMBER(RESOURCE_EXHAUSTED, Error_Code_RESOURCE_EXHAUSTED);
NUMBER(INTERNAL, Error_Code_INTERNAL);
NUMBER(F16, DataType_F16); NUMBER(F32, DataType_F32); NUMBER(F64, DataType_F64);
NUMBER(BF16, DataType_BF16); NUMBER(S64, DataType_S64);
NUMBER(BUFFER, ArgType_BUFFER); NUMBER(BUFFER, RetType_BUFFER); NUMBER(SCALAR, AttrType_SCALAR);
SIZE(Extension, Extension_Base); AT(Extension, type, Extension_Base, type); AT(Extension, next, Extension_Base, next);
SIZE(Version, Api_Version); AT(Version, extension_start, Api_Version, extension_start);
AT(Version, major_version, Api_Version, major_version); AT(Version, minor_version, Api_Version, minor_version);
AT(Metadata, api_version, Metadata, api_version); AT(Metadata, traits, Metadata, traits);
AT(MetadataExtension, metadata, Metadata_Extension, metadata);
SIZE(ErrorArguments, Error_Create_Args); AT(ErrorArguments, message, Error_Create_Args, message);
AT(ErrorArguments, errc, Error_Create_Args, errc);
AT(Api, api_version, Api, api_version); AT(Api, create_error, Api, XLA_FFI_Error_Create);
SIZE(Buffer, Buffer); AT(Buffer, dtype, Buffer, dtype); AT(Buffer, data, Buffer, data);
AT(Buffer, rank, Buffer, rank); AT(Buffer, dims, Buffer, dims);
SIZE(Scalar, Scalar); AT(Scalar, dtype, Scalar, dtype); AT(Scalar, value, Scalar, value);
SIZE(Text, ByteSpan); AT(Text, ptr, ByteSpan, ptr); AT(Text, len, ByteSpan, len);
SIZE(Buffers, Args); AT(Buffers, size, Args, size); AT(Buffers, types, Args, types); AT(Buffers, items, Args, args);
SIZE(Buffers, Rets); AT(Buffers, size, Rets, size); AT(Buffers, types, Rets, types); AT(Buffers, items, Rets, rets);
SIZE(Attributes, Attrs); AT(Attributes, size, Attrs, size); AT(Attributes, types, Attrs, types);
AT(Attributes, names, Attrs, names); AT(Attributes, items, Attrs, attrs);
AT(CallFrame, extension_start, CallFrame, extension_start); AT(CallFrame, api, CallFrame, api);
AT(CallFrame, stage, CallFrame, stage); AT(CallFrame, arguments, CallFrame, args);
AT(CallFrame, results, CallFrame, rets); AT(CallFrame, attributes, CallFrame, attrs);
"""


def test_the_declared_abi_is_jaxlibs(tmp_path):
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None or not DECLARED.exists():
        pytest.skip("needs a C++ compiler and the sources")
    source = tmp_path / "same.cpp"
    same = SAME.replace("{declared}", str(DECLARED))
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    if "XLA_FFI_InternalExtension" in header.read_text(encoding="utf-8"):  # its name in JAX 0.12
        same = same.replace("Extension_Base", "InternalExtension")
    source.write_text(same)
    command = [*compiler.split(), "-std=c++20", "-fsyntax-only", "-Wno-invalid-offsetof", f"-I{jax.ffi.include_dir()}"]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


served = pytest.mark.skipif(bool(kernels.missing), reason=str(kernels.missing))


@served
def test_subnormal_numbers_count_on_every_thread():
    """XLA's threads treat them as zero, those of the pool do not."""
    x = np.random.default_rng(0).standard_normal((64, 4099)).astype(np.float32) * np.float32(1e-41)
    y = np.asarray(rj.rms_norm(x, eps=1e-12))
    expected = reference.rms_norm(x, eps=1e-12)
    assert np.max(np.abs(y - expected)) <= 4 * 2**-24 * np.max(np.abs(expected))
    y = np.asarray(rj.rms_norm(x, eps=0.0))
    expected = reference.rms_norm(x, eps=0.0)
    assert np.max(np.abs(y - expected)) <= 8 * 2**-24 * np.max(np.abs(expected))
    tiny = np.asarray(rj.rms_norm(np.ones((8, 64), np.float32), np.full(64, 1e-41, np.float32), eps=0.0))
    assert (tiny == np.float32(1e-41)).all()


@served
def test_bits_are_those_of_the_numpy_functions():
    import rmsnorm.numpy as rn

    x, dy = np.random.default_rng(1).standard_normal((2, 300, 1000)).astype(np.float32)
    g = np.random.default_rng(2).standard_normal(1000).astype(np.float32)
    y, pull = jax.vjp(lambda x, g: rj.rms_norm(x, g, eps=1e-5, p=0.5), x, g)
    assert np.array_equal(y, rn.rms_norm(x, g, eps=1e-5, p=0.5))
    for found, expected in zip(pull(dy), rn.rms_norm_backward(dy, x, g, eps=1e-5, p=0.5)[:2], strict=True):
        assert np.array_equal(found, expected)


@served
def test_operands_that_do_not_fit_are_an_error():
    """A direct call of a handler gets an error, whatever its attributes say is there."""
    spec = {"kind": np.int64(0), "k": np.int64(5), "eps": np.float64(0), "flags": np.int64(native.OWN_THREADS)}
    spec |= {"groups": np.int64(1), "heads": np.int64(1), "n": np.int64(5)}
    x, g = np.ones(10, np.float32), np.ones(5, np.float32)

    def call(*args, results=1, target="rmsnorm_forward", **attributes):
        like = jax.ShapeDtypeStruct(x.shape, np.float32)
        given = {"arguments": np.int64(1), "results": np.int64(results)} | spec | attributes
        return jax.ffi.ffi_call(target, like)(*args, **given)

    assert np.array_equal(call(x, g, arguments=np.int64(5)), np.ones(x.shape))
    wrong = [
        lambda: call(x[:9]),
        lambda: call(x.reshape(2, 5)),
        lambda: call(x, g[:4], arguments=np.int64(5)),
        lambda: call(x, g, arguments=np.int64(3)),
        lambda: call(x, n=np.int64(4)),
        lambda: call(x, groups=np.int64(-1)),
        lambda: call(x, groups=np.int64(2**40), heads=np.int64(2**40)),
        lambda: call(x.astype(np.int32)),
        lambda: call(x, k=np.int64(6)),
        lambda: call(x, k=np.int32(4)),
        lambda: call(x, results=0),
        lambda: call(x, results=2),
        lambda: call(x, target="rmsnorm_backward"),
        lambda: call(x, x.astype(np.float16), arguments=np.int64(3), target="rmsnorm_backward"),
    ]
    for each in wrong:
        with pytest.raises(Exception, match="declined"):
            np.asarray(each())


EXPORTED = """
import jax, numpy as np
from jax import export
x, g, dx, dg = np.load("{folder}/arrays.npz").values()
step = export.deserialize(bytearray(open("{folder}/step", "rb").read()))
try:
    step.call(x, g)
except Exception as error:
    assert "No FFI handler registered for rmsnorm_" in str(error), error
else:
    raise AssertionError("the process has no handlers yet")
import rmsnorm.jax
for found, expected in zip(step.call(x, g), (dx, dg), strict=True):
    np.testing.assert_array_equal(found, expected)
"""


@served
def test_an_exported_function_needs_the_handlers_where_it_is_loaded(tmp_path, run_python):
    """It was exported for any number of rows."""
    pytest.importorskip("flatbuffers")
    from jax import export

    x, g = (np.random.default_rng(3).standard_normal(shape).astype(np.float32) for shape in ((5, 33), 33))
    step = jax.jit(jax.grad(lambda x, g: (rj.rms_norm(x, g, eps=1e-5) ** 2).sum(), (0, 1)))
    allowed = [export.DisabledSafetyCheck.custom_call(f"rmsnorm_{which}") for which in ("forward", "backward")]
    like = jax.ShapeDtypeStruct(export.symbolic_shape("b, 33"), np.float32), jax.ShapeDtypeStruct((33,), np.float32)
    (tmp_path / "step").write_bytes(export.export(step, disabled_checks=allowed)(*like).serialize())
    np.savez(tmp_path / "arrays.npz", x, g, *step(x, g))
    run_python(EXPORTED.replace("{folder}", tmp_path.as_posix()))


@served
@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 8), (1, 1, 8)], ids=str)
def test_no_array_is_copied(shape):
    """XLA orders dimensions of 1 as it likes, and copied every array where the handlers asked for another order."""
    x, g = np.ones(shape, np.float32), np.ones(8, np.float32)

    def gradients(x, g, dy):
        return jax.vjp(rj.rms_norm, x, g)[1](dy)

    for function, given in ((rj.rms_norm, (x, g)), (gradients, (x, g, x))):
        program = jax.jit(function).lower(*given).compile().as_text()
        assert "custom-call(" in program
        assert "copy(" not in program
