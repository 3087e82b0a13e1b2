"""A norm of the user's own that cannot be found, built or trained: every refusal is a sentence."""

import re
import sys

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib", "jinja2"):
    pytest.importorskip(_package)

from own_norms import RMS, said, written  # noqa: E402
from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments import norms  # noqa: E402
from rmsnorm_lab.experiments.learner import _shard  # noqa: E402
from tiny_runs import corpus, language  # noqa: E402


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, set_threads, tmp_path):
    """Files are named from the current folder."""
    set_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


BODY = "import torch\nclass {}(torch.nn.Module):\n    def __init__(self, width):\n        super().__init__()\n"
BACKWARD = """
import torch

class Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        raise ValueError("no backward")

def X(width):
    return Cut.apply
"""


@pytest.mark.parametrize(
    ("source", "text", "message"),
    [
        ("gone.py:MyNorm", None, "'gone.py' cannot: No such file .* looked for in '/"),
        ("folder/:MyNorm", None, "folder/ must be importable; it is not: ModuleNotFoundError"),
        ("no.such.module:MyNorm", None, "no.such.module must be importable; .* No module named 'no'"),
        (".:x", None, "FILE.py:NAME or package.module:NAME; got '.:x'"),
        ("..mine:X", None, "FILE.py:NAME or package.module:NAME; got '..mine:X'"),
        ("my_norm.py", "", "FILE.py:NAME or package.module:NAME; got 'my_norm.py'"),
        ("my_norm.py:", "", "FILE.py:NAME or package.module:NAME; got 'my_norm.py:'"),
        ("my_norm.py:Sane", RMS, "must have 'Sane', .*; it has no 'Sane'. Did you mean 'Same'"),
        ("my_norm.py:xyz", RMS, "it has no 'xyz'. It has Same, Deep, plain"),
        ("my_norm.py:three", "three = 3", "its 'three' is of type int. It has no class and no function"),
        ("torch:nothing", None, "it has no 'nothing'. It has .*, …"),
        ("my_norm.py:X", "import torch\n\ndef X(:", "my_norm.py must be importable; it is not: SyntaxError"),
        ("my_norm.py:X", "import torch\n1 / 0\n", "it is not: ZeroDivisionError, line 2: division by zero"),
        ("my_norm.py:X", "import sys; sys.exit(3)", "it is not: SystemExit, line 1: 3"),
        ("my_norm.py:X", "import neighbour", "No module named 'neighbour'. A file must hold the whole norm"),
    ],
)
def test_what_cannot_be_found_is_said(source, text, message, capsys):
    if text is not None:
        written(text)
    assert main(["train", "language", "--norm", source, "--out", "out"]) == 2
    assert re.search(message, found := said(capsys)), found
    assert "Traceback" not in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            BODY.format("X") + "        raise ValueError('must divide by 7')",
            r"here 32; .* ValueError: must divide by 7",
        ),
        ("def X(width, eps): pass", r"take the width alone, .* TypeError: .* 'eps'"),
        ("def X(x): return x * 2", r"give a torch.nn.Module, or a function .*; it gave int"),
        (BODY.format("X") + "    def forward(self, x):\n        return x[..., :3]", r"it made float32 \(3, 3\)"),
        (BODY.format("X") + "    def forward(self, x):\n        return x.double()", r"it made float64 \(3, 32\)"),
        (BODY.format("X") + "    def forward(self, x):\n        return None", r"it made NoneType"),
        (BODY.format("X") + "    def forward(self, x):\n        return x @ x", r"it raised RuntimeError"),
        (
            BODY.format("X") + "    def forward(self, x):\n        return x.sum(-1) if self.training else x",
            r"of float32 \(3, 32\), in training, it made float32 \(3,\)",
        ),
        (
            "def X(width):\n    return lambda x: x.view(-1, width).view(x.shape) * 2",
            r"of float32 \(2, 3, 2, 32\), not contiguous, in evaluation, it raised RuntimeError: view size",
        ),
        (
            BODY.format("X") + "        self.a = torch.nn.Parameter(torch.ones(width))\n"
            "    def forward(self, x):\n        return x.detach() * self.a",
            r"pass the gradient .* to its input; none arrives there. Leave out what cuts it, such as detach\(\)",
        ),
        ("import torch\ndef X(width):\n    return torch.zeros_like", r"none arrives there"),
        (BACKWARD, r"in training, of float32 \(3, 32\), it raised ValueError: no backward"),
        (
            "import torch\ndef X(width):\n    return torch.nn.Sequential(torch.nn.LazyLinear(width))",
            r"once it is made for a width, here 32; it has lazy ones. Give their modules the width",
        ),
        (
            BODY.format("X") + "    def forward(self, x):\n"
            "        self.register_buffer('seen', x.detach().clone())\n        return x * 2",
            r"load the state that it had before .*, it raised RuntimeError: .*Missing key",
        ),
        ("def X(width):\n    raise SystemExit(3)", r"take the width alone, .* SystemExit: 3"),
        (BODY.format("X") + "    def forward(self, x):\n        raise SystemExit(3)", r"it raised SystemExit: 3"),
        ("def X(width):\n    return lambda x: x.mul_(2)", r"leave that tensor as it is; .* it wrote into it"),
    ],
)
def test_what_is_no_norm_is_refused_before_anything_is_trained(text, message, tmp_path, capsys):
    written(text)
    corpus(tmp_path)
    assert main(language(tmp_path / "out", "--norm", "layer", "my_norm.py:X")) == 2
    assert re.search(rf"my_norm.py:X must .*{message}", found := said(capsys)), found
    assert not list((tmp_path / "out").glob("*.jsonl"))


@pytest.mark.parametrize("forward", ["return many(x)", "return x * 2 + 0 * many(x).sum()"])
def test_what_it_raises_in_training_is_a_sentence_with_its_line(forward, tmp_path, capsys):
    """More rows than were tried before."""
    written(
        "import torch\ndef many(x):\n    if x.shape[0] > 3:\n        raise ValueError('too many rows')\n"
        "    return x * 2\n"
        f"def X(width):\n    def forward(x):\n        {forward}\n    return forward\n"
    )
    corpus(tmp_path)
    assert main(language(tmp_path / "out", "--norm", "my_norm.py:X")) == 2
    assert "my_norm.py must take every input of the network; line 4 of it raised ValueError: too many rows" in said(
        capsys
    )


def test_a_norm_is_as_it_was_after_it_was_tried():
    written(
        BODY.format("X") + "        self.register_buffer('seen', torch.zeros(()))\n        self.eval()\n"
        "    def forward(self, x):\n        self.seen += 1\n        return x * 1"
    )
    with torch.no_grad():
        layer = norms.made(norms.of_user("my_norm.py:X"), "best").layer(3)
    assert layer.seen == 0
    assert not layer.training


def test_a_scalar_parameter_cannot_be_sharded():
    written(
        BODY.format("X") + "        self.a = torch.nn.Parameter(torch.tensor(0.5))\n    def forward(self, x):\n"
        "        return self.a * x"
    )
    with pytest.raises(UserError, match=r"fsdp needs .*; norm.a is a scalar. Give it the shape \(1,\)"):
        _shard(torch.nn.ModuleDict({"norm": norms.made(norms.of_user("my_norm.py:X"), "best").layer(3)}), None)
