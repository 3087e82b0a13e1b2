"""Adam with eps inside the root, as in the code of Salimans & Kingma 2016 that the paper's images use."""

from typing import Any

import torch


class EpsInRoot(torch.optim.Adam):
    """p ← p − lr · m̂ / √(v̂ + eps), where torch's Adam has m̂ / (√v̂ + eps).

    A gradient g that is small against √eps then moves a parameter by lr·g/√eps, not by lr. With v ← β₂v + (1 − β₂)
    (g² + eps) torch's own step does it at eps = 0: v̂ is then the mean of g² plus eps.
    """

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float], eps: float, fused: bool) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=0.0, fused=fused)
        self.inside = eps
        for group in self.param_groups:
            for p in group["params"]:
                step = torch.zeros((), device=p.device if fused else "cpu")
                self.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            beta2 = group["betas"][1]
            for p in group["params"]:
                if p.grad is not None:  # the step multiplies it by β₂
                    self.state[p]["exp_avg_sq"].add_(self.inside * (1 - beta2) / beta2)
        return super().step(closure)
