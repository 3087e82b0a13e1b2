"""``rmsnorm info``: what it says of this installation, of torch's builds, and of packages that are missing."""

import json
import subprocess
import sys

import pytest
import torch

from rmsnorm import cli, native
from rmsnorm.torch import dispatch


@pytest.mark.parametrize(
    ("why_not", "says"),
    [("it is a test", "torch cuda: composite (why: it is a test)"), (None, "torch cuda: Triton kernels (device: ")],
)
def test_info_names_the_level_and_every_backend(why_not, says, capsys, monkeypatch):
    monkeypatch.setattr(dispatch, "why_no_triton", why_not)  # whatever this torch is built with
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    assert f"kernels     {native.level()}" in said
    for where in (
        "numpy:",
        "torch cpu, eager: native",
        says,
        "jax cpu: native",
    ):
        assert where in said


@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_info_follows_how_torch_is_built(cuda, capsys, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # so that no kernel is tried
    monkeypatch.setattr(dispatch, "why_no_triton", dispatch._why_no_triton())
    assert cli.main(["info"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  torch cuda: "))
    without_cuda = "this torch is built without CUDA or ROCm"
    assert (without_cuda in line) == (cuda is None), line


def test_info_as_json(capsys):
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["native"]["level"] in facts["native"]["available"]
    assert all(backend["served by"] for backend in facts["backends"])


def test_info_without_torch_says_how_to_get_it():
    source = (
        "import importlib.util as u, sys; find = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name in ('torch', 'jax', 'ml_dtypes') else find(name, *a);"
        "import rmsnorm.info as i; print(i._text(i.collect())); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'rmsnorm[torch]'" in done.stdout
    assert "pip install 'rmsnorm[jax]'" in done.stdout
    assert "bfloat16: ml_dtypes is not installed" in done.stdout
