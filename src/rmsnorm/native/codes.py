"""The numbers that Python and C++ exchange, written here and nowhere else.

The build runs this file and compiles the header that it prints (CMakeLists.txt). Python reads the constants
themselves, so Triton's kernels have them where no C++ is built.
"""

# Bits of a kernel call's ``flags``.
ZERO_CENTERED = 1  # the gain is 1 + weight
ROUND_FIRST = 2  # casting="llama": round x̂ to the input's dtype before it is multiplied
OWN_THREADS = 4  # run on the pool of native/parallel.h, not on torch's
FRESH = 8  # the outputs were just allocated: they overlap nothing, and are not in a cache
FLAGS = ("ZERO_CENTERED", "ROUND_FIRST", "OWN_THREADS", "FRESH")

# Which way a torch call goes.
COMPOSITE, KERNEL, AUTOGRAD = 0, 1, 2
WAYS = ("COMPOSITE", "KERNEL", "AUTOGRAD")

# A norm, and a tensor's dtype, is its index.
NORM_KINDS = ("rms", "layer")
DTYPES = ("float32", "float64", "bfloat16", "float16", "int8", "float8_e4m3fn")


def definitions() -> str:
    """These numbers in C++."""
    constants = [f"constexpr int {name} = {globals()[name]};" for name in (*FLAGS, *WAYS)]
    kinds = f"enum class NormKind : int {{ {', '.join(NORM_KINDS)} }};"
    dtypes = f"enum class DType : int {{ {', '.join(DTYPES)} }};"
    return "\n".join((*constants, kinds, dtypes))


def header() -> str:
    """The C++ header, which also keeps its text: a test compares that of the compiled kernels with this file."""
    return f"""// Made by the build from rmsnorm/native/codes.py.
#pragma once

namespace rmsnorm {{

{definitions()}

constexpr const char* DEFINITIONS = R"({definitions()})";

}}  // namespace rmsnorm
"""


if __name__ == "__main__":
    print(header(), end="")
