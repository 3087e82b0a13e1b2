"""The benchmark's cases: how flags choose them, what they move, and what is refused by name."""

from dataclasses import replace

import pytest

from rmsnorm_lab.bench import case_sets, cases
from rmsnorm_lab.errors import UserError

torch = pytest.importorskip("torch")
pytest.importorskip("rich")

from bench_calls import CASE, bench  # noqa: E402


def test_flags_take_the_place_of_the_defaults():
    changed = case_sets.choose(
        case_sets.default_cases(2), {"shape": [case_sets.shape("7x65")], "dtype": [{"dtype": "bfloat16"}]}
    )
    assert {(case.rows, case.n, case.dtype) for case in changed} == {(7, 65, "bfloat16")}
    assert len(changed) == len(set(changed))
    assert {case.op for case in changed} == set(cases.OPERANDS)  # a shape of two numbers is a norm's
    assert all(case.p == 1 for case in case_sets.choose(case_sets.default_cases(2), {"op": [{"op": "layer_norm"}]}))
    gradients = [{"direction": "forward+backward"}]
    assert all(case.op not in cases.FORWARD_ONLY for case in case_sets.choose(changed, {"direction": gradients}))
    with pytest.raises(UserError, match="which have no gradient"):
        case_sets.choose(changed, {"op": [{"op": "rms_norm_quantized"}], "direction": gradients})
    with pytest.raises(UserError, match="no partial statistic"):
        case_sets.choose(case_sets.default_cases(2), {"op": [{"op": "layer_norm"}], "p": [{"p": 0.5}]})


@pytest.mark.parametrize(
    ("op", "direction", "arrays"),
    [
        ("rms_norm", "forward", 2),  # x, y
        ("rms_norm", "forward+backward", 5),  # and x, dy, dx
        ("add_rms_norm", "forward", 4),  # x, residual, h, y
        ("rms_norm", "backward", 3),  # x, dy, dx
        ("add_rms_norm", "forward+backward", 8),  # and h, dy, dh, dx
        ("add_rms_norm", "backward", 4),
        ("rms_norm_gated", "backward", 5),
        ("add_rms_norm_inplace", "forward", 4),
        ("rms_norm_heads", "forward+backward", 5),
        ("rms_norm_gated", "forward", 3),  # x, gate, y
        ("rms_norm_gated", "forward+backward", 8),  # and dy, x, gate, dx, dgate
        ("rms_norm_quantized", "forward", 1.25),  # x, and bytes
        ("add_rms_norm_quantized", "forward", 3.25),  # x, residual, h, and bytes
    ],
)
def test_the_limit_moves_what_the_case_must(op, direction, arrays):
    assert replace(CASE, op=op, direction=direction).bytes_moved == arrays * 8 * 64 * 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--op", "batch_norm"], ["batch_norm", "rms_norm", "layer_norm", "add_rms_norm"]),
        (["--dtype", "float8"], ["float8", "float32", "bfloat16"]),
        (["--direction", "sideways"], ["sideways", "forward+backward"]),
        (["--provider", "apex"], ["apex", "rmsnorm-out", "F.layer_norm", "onnxruntime", "jax", "copy"]),
        (["--shape", "256"], ["256x1024", "'256'"]),
        (["--shape", "0x16"], ["positive", "'0x16'"]),
        (["--p", "1.5"], ["0 < p <= 1", "'1.5'"]),
        (["--threads", "0"], ["from 1 to", "'0'"]),
        (["--device", "tpu"], ["cpu or cuda", "'tpu'"]),
        (["--plot", "figure.doc"], [".png", "figure.doc"]),
        (["--json", "no/such/folder/x.json"], ["no/such/folder"]),
        (["--from", "missing.json"], ["missing.json must be a file that can be read: No such file"]),
    ],
)
def test_wrong_input_is_refused_by_name(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bench("--quick", *arguments) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in said), message
    assert list(tmp_path.iterdir()) == []
