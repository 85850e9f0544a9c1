r"""EVODiff: a two-step method whose weights come from the evaluations themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor

from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Grid, Node
from workbench.sampling.methods.base import Sampler, exponential_step
from workbench.sampling.program import Apply, Evaluate, Program, Row, Step

#: Projections are kept within these bounds.
BOUND = 2.0


@dataclass(frozen=True)
class EVODiff(Sampler):
    r"""Entropy-aware, variance-optimised inference: balanced differences of denoised states.

    With the step :math:`h = 1/\rho' - 1/\rho` from s to t, the step before from r to s, the DDIM
    step :math:`x_E = \tfrac{\sigma'}{\sigma} x + \sigma' h D_s`, the ratio
    :math:`q = \log\tfrac{\rho_r}{\rho_s} / \log\tfrac{\rho_s}{\rho_t}` and
    :math:`\langle a|b\rangle = a\cdot b/b\cdot b` within [-2, 2], the published rules are

    .. math::
        \Delta_1 &= D_s - \beta_1 D_r,\quad
          \beta_1 = (1-w)\sqrt{\tfrac{\sigma_t\sigma_r}{\sigma_s^2}} + w\langle D_s|D_r\rangle,
          \quad w = \tfrac12\Bigl(1 - \bigl(\tfrac{t + t_0}{T + t_0}\bigr)^2\Bigr) \\
        \tilde x &= x_E + \tfrac{\sigma' h}{2\,r}\Delta_1,\qquad
          r = q\,\mathrm{sigmoid}(|\beta_1|/4) \\
        \Delta_2 &= D(\tilde x) - \beta_2 D_s,\quad
          \beta_2 \text{ likewise, of } D(\tilde x) \text{ and } D_s \\
        B &= -\eta\,\Delta_1/q + (1-\eta)\,q\,\Delta_2,\quad
          \eta = \tfrac12\,\mathrm{sigmoid}\bigl|\tfrac12\langle q\Delta_2 + \Delta_1/q\,|\,
          q\Delta_2 - \Delta_1/q\rangle\bigr| \\
        x' &= x_E + \tfrac{\sigma' h}{2\zeta} B,\quad
          \zeta = \mathrm{sigmoid}\Bigl(\tfrac{|\langle \tilde x - x_E - \sigma' h B/2r\,|\,
          \Delta_1\rangle|}{\sigma' h} - \tfrac12\Bigr)

    and, on grids of more than 20 steps, the argument of the last sigmoid is multiplied by
    :math:`-\mathrm{sigmoid}(\langle D_s|(D_s - D_r)/h\rangle (2 - \sigma'^2/\sigma^2))`. The
    evaluation at the probe :math:`\tilde x` serves as D_s of the next step, so a step costs one
    evaluation. Products run over all coordinates of a sample; of a (channel, row, column) sample
    over each channel, as published.

    **Not a second-order method of the probability flow**: the weights do not match a Taylor
    expansion. Order 1, and not evenly so. ``ending="published"`` takes the published last step,
    :math:`x' = (1 - \sqrt{\sigma_t\sigma_s})\, x_E + \tfrac{\sigma' h}{2} (D_s - \beta D_r)` with
    :math:`\beta = 1 - \tfrac12\sqrt{\sigma_t/\sigma_s}` (of the ratio less 1/2 from there on),
    which depends on the scale of the data and leaves an error of about sigma however many the
    steps; ``"ddim"`` ends with x_E.

    Source: Li et al. 2025, *EVODiff: Entropy-aware Variance Optimized Diffusion Inference*
    (arXiv:2509.26096), as in the authors' public code.
    """

    ending: Annotated[Literal["ddim", "published"], Param("the last step")] = "ddim"

    order = 1

    def evaluations(self, a: Node, b: Node) -> int:
        """On average: the second step takes two, the last none."""
        return 1

    def _program(self, process: Process, grid: Grid) -> Program:
        nodes, steps = grid.nodes, []
        inner = [(a, b) for a, b in pairwise(nodes) if a.alpha > 0 and b.sigma > 0]
        late, ends = len(inner) > 20, (grid.t[0], inner[-1][1].t if inner else 0.0)
        before: Node | None = None  # of the step before, once there is one
        for a, b in pairwise(nodes):
            rows: list[Row] = list(exponential_step(a, b))
            if b.sigma > 0 and a.alpha > 0:
                last = (a, b) == inner[-1]
                if before is None:
                    rows[0] = Evaluate("E0", "x", a)
                    rows[1] = Apply("x", ("x", "E0"), partial(_euler, a, b))
                elif last:
                    rows = [] if len(inner) > 2 else [Evaluate("E1", "x", a)]
                    rows.append(Apply("x", ("x", "E0", "E1"), partial(self._last, a, b)))
                else:
                    rows = [Evaluate("E1", "x", a)] if before == inner[0][0] else []
                    step = partial(_step, (before, a, b), ends, late)
                    rows.append(Apply(("x", "E0", "E1"), ("x", "E0", "E1"), step, 1))
                before = a
            steps.append(Step(a, b, tuple(rows)))
        return Program(tuple(steps))

    def _last(self, a: Node, b: Node, run, x: Tensor, older: Tensor, newer: Tensor) -> Tensor:
        euler = _euler(a, b, run, x, newer)
        if self.ending == "ddim":
            return euler
        ratio = b.sigma / a.sigma
        beta = 1 - 0.5 * math.sqrt(ratio if ratio < 0.5 else ratio - 0.5)
        shrink = 1 - math.sqrt(b.sigma * a.sigma)
        return shrink * euler + 0.5 * b.sigma * _width(a, b) * (newer - beta * older)


def _width(a: Node, b: Node) -> float:
    """h = 1/rho' - 1/rho."""
    return b.alpha / b.sigma - a.alpha / a.sigma


def _euler(a: Node, b: Node, run, x: Tensor, denoised: Tensor) -> Tensor:
    """The DDIM step."""
    return (b.sigma / a.sigma) * x + (b.sigma * _width(a, b)) * denoised


def _step(nodes, ends, late: bool, run, x: Tensor, older: Tensor, newer: Tensor):
    """The next state, and the two evaluations that the next step needs."""
    (r, s, t), (first, final) = nodes, ends
    h = _width(s, t)
    scale = 0.5 * t.sigma * h
    q = math.log(r.rho / s.rho) / math.log(s.rho / t.rho)
    weight = 0.5 * (1 - ((t.t + final) / (first + final)) ** 2)
    base = (1 - weight) * math.sqrt(t.sigma * r.sigma) / s.sigma

    beta = base + weight * _projection(newer, older)
    pre = newer - beta * older
    euler = _euler(s, t, run, x, newer)
    factor = (q * torch.sigmoid(0.25 * beta.abs())).clamp(0.25 * q, 1.5 * q)
    probe = euler + scale / factor * pre
    there = run.denoise(probe, t.alpha, t.sigma)
    post = there - (base + weight * _projection(there, newer)) * newer

    one, two = pre / q, q * post
    eta = 0.5 * torch.sigmoid(0.5 * _projection(two + one, two - one).abs())
    both = (1 - eta) * two - eta * one
    excess = _projection(probe - euler - scale / factor * both, pre).abs() / (h * t.sigma) - 0.5
    if late:
        change = newer - older
        rounding = change.abs() <= 64 * torch.finfo(change.dtype).eps * newer.abs()
        along = _projection(newer, change.masked_fill(rounding, 0.0) / h)
        excess = -excess * torch.sigmoid(along * (2 - (t.sigma / s.sigma) ** 2))
    return euler + scale / torch.sigmoid(excess) * both, newer, there


def _projection(a: Tensor, b: Tensor) -> Tensor:
    """How much of b there is in a, within the bounds; 0 where b is 0. One for each sample."""
    if a.ndim == 1:
        return _projection(a[:, None], b[:, None])[:, 0]
    axes = tuple(range(2 if a.ndim == 4 else 1, a.ndim))
    dot = (a * b).sum(axes, keepdim=True)
    norm = (b * b).sum(axes, keepdim=True)
    return torch.where(norm > 0, dot / norm, 0.0).clamp(-BOUND, BOUND)
