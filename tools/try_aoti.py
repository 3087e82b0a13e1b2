"""A model with this package's norms in a C++ program: exported, compiled ahead of time, and run without Python.

    python tools/try_aoti.py [--folder build/aoti]

Compiles the package with AOTInductor and the program with the C++ compiler (a minute together), runs the program, and
compares its result with the eager model's.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import rmsnorm.torch as rn
from rmsnorm.torch import node_files

PROGRAM = r"""
#include <dlfcn.h>

#include <fstream>
#include <iostream>

#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  if (!dlopen(argv[1], RTLD_NOW)) {  // defines rmsnorm's operators
    std::cerr << dlerror() << "\n";
    return 1;
  }
  const torch::inductor::AOTIModelPackageLoader model(argv[2]);
  const auto x = at::arange(5 * 96, at::kFloat).sin().reshape({5, 96});
  const auto y = const_cast<torch::inductor::AOTIModelPackageLoader&>(model).run({x})[0].contiguous();
  std::ofstream(argv[3], std::ios::binary).write(static_cast<const char*>(y.data_ptr()), y.nbytes());
}
"""


class Model(nn.Module):
    """A gated block with every kind of norm that has an operator."""

    def __init__(self):
        super().__init__()
        self.first, self.second = rn.RMSNorm(96, p=0.25), rn.LayerNorm(96)
        self.gated = rn.RMSNormGated(96)
        self.up, self.down = nn.Linear(96, 192), nn.Linear(96, 96)

    def forward(self, x):
        value, gate = self.up(self.first(x)).chunk(2, -1)
        y, x = rn.add_rms_norm(self.down(self.gated(value, gate)), x, 96, eps=1e-6)
        return self.second(x + y)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/aoti"))
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    operators = node_files.find_operators()
    if operators is None:
        sys.exit(f"there are no operators for torch {torch.__version__}; `rmsnorm build-nodes` compiles them")
    torch.manual_seed(0)
    model = Model().eval()
    x = torch.arange(5 * 96, dtype=torch.float32).sin().reshape(5, 96)
    with torch.no_grad():
        expected = model(x)
        program = torch.export.export(model, (x,))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))
    source, binary, result = folder / "main.cpp", folder / "main", folder / "result.bin"
    source.write_text(PROGRAM)
    home = Path(torch.__file__).parent
    includes = [f"-I{home}/include", f"-I{home}/include/torch/csrc/api/include"]
    libraries = [f"-L{home}/lib", f"-Wl,-rpath,{home}/lib", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    compiler = os.environ.get("CXX", "g++")
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    subprocess.run(
        [compiler, "-std=c++20", "-O1", abi, *includes, str(source), "-o", str(binary), *libraries], check=True
    )
    subprocess.run([str(binary), str(operators), package, str(result)], check=True)
    found = torch.from_numpy(np.fromfile(result, np.float32).reshape(5, 96))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    names = sorted({str(node.target) for node in program.graph.nodes if "rmsnorm" in str(node.target)})
    print(f"{binary} ran {', '.join(names)} as the eager model does")
    return 0


if __name__ == "__main__":
    sys.exit(main())
