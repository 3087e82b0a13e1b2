"""A normalised GRU and LSTM written from their equations: the tests' one loop, which every other is compared with.

It uses nothing of this package. ``run`` takes sequences of unequal lengths one at a time.
"""

import math
from fractions import Fraction

import torch


def normalize(x, norm, p, eps):
    """x̂ over the last dimension; ``norm`` is a name or a function of x."""
    if callable(norm):
        return norm(x)
    if norm == "layer":
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    k = math.ceil(Fraction(str(p)) * x.shape[-1])
    return x / (x[..., :k].square().mean(-1, keepdim=True) + eps).sqrt()


class Plain:
    """One layer in one direction; parameters under torch's names without suffixes."""

    def __init__(self, cell, parameters, norm, p, eps, placement):
        self.cell, self.norm, self.p, self.eps, self.placement = cell, norm, p, eps, placement
        self.hidden = parameters["weight_hh"].shape[1]
        zero = parameters["weight_hh"].new_zeros(())
        one = zero + 1
        self.w_ih, self.w_hh = parameters["weight_ih"], parameters["weight_hh"]
        self.b_ih, self.b_hh = parameters.get("bias_ih", zero), parameters.get("bias_hh", zero)
        self.g_ih, self.g_hh = parameters.get("gain_ih", one), parameters.get("gain_hh", one)
        self.g_cell = parameters.get("gain_cell", one)

    def n(self, x, groups):
        """Each group of consecutive gates by a statistic of its own."""
        gates = x.split(self.hidden, -1)
        parts, first = [], 0
        for count in groups:
            parts.append(normalize(torch.cat(gates[first : first + count], -1), self.norm, self.p, self.eps))
            first += count
        return torch.cat(parts, -1)

    def preactivations(self, x, h):
        """Both sides as the gates see them."""
        a, c = x @ self.w_ih.T, h @ self.w_hh.T
        if self.norm is None:
            return a + self.b_ih, c + self.b_hh
        gru = self.cell == "GRU"
        groups = {"paper": (2, 1), "input": (2, 1), "haste": (3,), "dreamer": (3,)}[self.placement] if gru else (4,)
        if self.placement == "dreamer":
            return torch.zeros_like(a), self.n(a + self.b_ih + c, groups) * self.g_hh + self.b_hh
        if self.placement == "haste":
            a = self.n(a, groups) * self.g_ih + self.b_ih
        else:
            a = self.n(a + self.b_ih, groups) * self.g_ih
        if self.placement != "input":
            c = self.n(c, groups) * self.g_hh
        return a, c + self.b_hh

    def step(self, x, h, c):
        a, s = self.preactivations(x, h)
        if self.cell == "GRU":
            a_r, a_z, a_n = a.split(self.hidden, -1)
            s_r, s_z, s_n = s.split(self.hidden, -1)
            r = torch.sigmoid(a_r + s_r)
            z = torch.sigmoid(a_z + s_z + (1 if self.norm and self.placement == "dreamer" else 0))
            return (1 - z) * torch.tanh(a_n + r * s_n) + z * h, c
        i, f, g, o = (a + s).split(self.hidden, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        seen = c
        if self.norm and self.placement != "input":
            seen = normalize(c, self.norm, self.p, self.eps) * self.g_cell
        return torch.sigmoid(o) * torch.tanh(seen), c

    def run(self, x, h, c, reverse=False):
        """x: (T, I) of one sequence, h and c: (H); or (T, B, I) and (B, H) of B sequences of equal length."""
        outputs = []
        for t in reversed(range(len(x))) if reverse else range(len(x)):
            h, c = self.step(x[t], h, c)
            outputs.append(h)
        return outputs[::-1] if reverse else outputs, h, c


def run(module, x, lengths, h0, c0):
    """(output, h_n, c_n) with a module's parameters; x: (T, B, I), states (layers·directions, B, H)."""
    steps, batch, _ = x.shape
    directions = 2 if module.bidirectional else 1
    finals_h, finals_c = [], []
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            own = {n[: -len(suffix)]: q for n, q in module.named_parameters() if n.endswith(suffix)}
            plain = Plain(module.cell, own, module.norm, module.p, module.eps, module.placement)
            at = layer * directions + direction
            rows = [
                plain.run(x[: lengths[b], b], h0[at, b], None if c0 is None else c0[at, b], bool(direction))
                for b in range(batch)
            ]
            padding = x.new_zeros(steps, module.hidden_size)
            outputs.append(
                torch.stack([torch.cat([torch.stack(o), padding[len(o) :]]) if o else padding for o, _, _ in rows], 1)
            )
            finals_h.append(torch.stack([h for _, h, _ in rows]))
            if c0 is not None:
                finals_c.append(torch.stack([c for _, _, c in rows]))
        x = torch.cat(outputs, -1)
    return x, torch.stack(finals_h), torch.stack(finals_c) if c0 is not None else None
