"""The arguments of the norms' operators, written here and nowhere else.

The build runs this file and compiles the header that it prints (CMakeLists.txt) into ops.cpp, which defines the
operators. Where that was not built, norm/ops.py and gated/ops.py define them.
"""

_NORM = "SymInt[] normalized_shape, Tensor? weight, Tensor? bias"
_HOW = "float? eps, float p, bool zero_centered, str casting"
_GATED_HOW = "float? eps, bool norm_before_gate, int groups, float p"
_GRADIENTS = "(Tensor, Tensor, Tensor)"

SCHEMAS = {
    "rms_norm": f"(Tensor input, {_NORM}, {_HOW}) -> Tensor",
    "rms_norm_backward": f"(Tensor dy, Tensor input, {_NORM}, Tensor? plus, bool[] wants, {_HOW}) -> {_GRADIENTS}",
    "add_rms_norm": f"(Tensor input, Tensor residual, {_NORM}, {_HOW}) -> (Tensor, Tensor)",
    "layer_norm": f"(Tensor input, {_NORM}, float? eps) -> Tensor",
    "layer_norm_backward": f"(Tensor dy, Tensor input, {_NORM}, bool[] wants, float? eps) -> {_GRADIENTS}",
    "rms_norm_gated": (
        f"(Tensor input, Tensor gate, SymInt[] normalized_shape, Tensor? weight, {_GATED_HOW}) -> Tensor"
    ),
    "rms_norm_gated_backward": (
        "(Tensor dy, Tensor input, Tensor gate, SymInt[] normalized_shape, Tensor? weight, bool[] wants, "
        f"{_GATED_HOW}) -> {_GRADIENTS}"
    ),
}
"""An operator's name, and what follows it in its schema. A backward operator's result that is not wanted is empty."""


def header() -> str:
    """The C++ header: X(operator, schema) for each."""
    lines = (f'  X({name}, "{schema}")' for name, schema in SCHEMAS.items())
    return (
        "\n".join(
            (
                "// Made by the build from rmsnorm/torch/schemas.py.",
                "#pragma once",
                "",
                "#define RMSNORM_OPERATORS(X) \\",
            )
        )
        + "\n"
        + " \\\n".join(lines)
        + "\n"
    )


if __name__ == "__main__":
    print(header(), end="")
