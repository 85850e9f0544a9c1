r"""Inversions with two states, undone exactly: each step changes one by a function of the other.

A leapfrog through neighbouring nodes keeps the states at the last two,

.. math:: x_{k+1} = c\,x_{k-1} + u\,x_k + v\,D(x_k, k),
          \qquad x_{k-1} = \bigl(x_{k+1} - u\,x_k - v\,D(x_k, k)\bigr)/c ,

and a coupled pair lets two copies of one state take turns. Exact means in exact arithmetic: where
the way back divides by small numbers, rounding grows, see
:meth:`workbench.Inversion.stability`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from workbench.params import Param
from workbench.sampling.grid import Grid, Node
from workbench.sampling.methods.base import LEAST, ddim_steps
from workbench.sampling.methods.inversion import Inversion, Steps, ddim, ddim_rows
from workbench.sampling.program import Combine, Evaluate, Row, Step


class Leapfrog(Inversion):
    """Base: a state from the one before the last and an evaluation at the last.

    The first step, which has no state before the last, is DDIM's; a step that leaves pure noise is
    never one of the leapfrog, which starts anew behind it.
    """

    exact = True
    states = ("x", "past")
    lagged = True

    def combine(self, past: Node, a: Node, b: Node) -> tuple[float, float, float]:
        """Coefficients of the state at ``past``, of that at ``a`` and of D there, in that at ``b``;
        sigma > 0 at all three."""
        raise NotImplementedError

    def forth(self, nodes: Sequence[Node]) -> tuple[Steps, Steps, Steps]:
        first, last = _ends(nodes)
        opening, middle = list(ddim_steps(nodes[: first + 1])), []
        for k in range(first, last):
            a, b = nodes[k], nodes[k + 1]
            if k == first:
                x, d = ddim(a, b)
                opening.append(Step(a, b, _step({"x": x, "D": d}, a)))
            else:
                c, x, d = self.combine(nodes[k - 1], a, b)
                middle.append(Step(a, b, _step({"past": c, "x": x, "D": d}, a)))
        return tuple(opening), tuple(middle), ddim_steps(nodes[max(first, last) :])

    def back(self, nodes: Sequence[Node]) -> tuple[Steps, Steps, Steps]:
        first, last = _ends(nodes)
        b = nodes[last]
        if first == last:  # one step, from pure noise
            return (), (), (Step(b, nodes[0], ddim_rows(b, nodes[0], out="latent")),)
        departure = (Step(b, b, ddim_rows(b, nodes[last - 1], out="past")),)
        undoing = []
        for k in range(last - 1, first, -1):
            c, x, d = self.combine(nodes[k - 1], nodes[k], nodes[k + 1])
            if not (c != 0 and math.isfinite(1 / c)):
                raise ValueError(
                    f"{self!r} cannot be undone on this grid: at t = {nodes[k].t:g} the step "
                    f"{k + 1} keeps {c:g} of the state two nodes before. Take BDIA or EDICT, or a "
                    "grid whose steps in rho change more slowly."
                )
            rows = (
                Evaluate("D", "past", nodes[k]),
                Combine("before", {"x": 1 / c, "past": -x / c, "D": -d / c}),
                Combine("x", {"past": 1.0}),
                Combine("past", {"before": 1.0}),
            )
            undoing.append(Step(nodes[k + 1], nodes[k], rows))
        if not first:
            rows = (Combine("latent", {"past": 1.0}),)
        else:
            rows = ddim_rows(nodes[1], nodes[0], "past", "latent")
        return departure, tuple(undoing), (Step(nodes[first + 1], nodes[0], rows),)


def _ends(nodes: Sequence[Node]) -> tuple[int, int]:
    """The nodes between which there are both signal and noise: first and last."""
    return int(nodes[0].alpha == 0), len(nodes) - 1 - (nodes[-1].sigma == 0)


def _step(terms: dict[str, float], a: Node) -> tuple[Row, ...]:
    return (
        Evaluate("D", "x", a),
        Combine("next", terms),
        Combine("past", {"x": 1.0}),
        Combine("x", {"next": 1.0}),
    )


@dataclass(frozen=True)
class BDIA(Leapfrog):
    r"""Bidirectional integration approximation: DDIM's step forward and its step back together.

    With :math:`\Phi_{k\to j}` the step of DDIM from node k to j,

    .. math:: x_{k+1} = \gamma\bigl(x_{k-1} - \Phi_{k\to k-1}(x_k)\bigr) + \Phi_{k\to k+1}(x_k) .

    Order 2 with gamma 1 (a leapfrog, weakly unstable) and 1 below. Encoding enlarges what the two
    states differ by beyond the flow 1/gamma-fold each step, so a round trip is exact for gamma 1
    only. One evaluation a step.

    Source: Zhang, Lewis & Kleijn 2023, arXiv:2307.10829.
    """

    gamma: Annotated[float, Param("weight of the step back", gt=0, le=1)] = 1.0

    @property
    def order(self) -> int:
        return 2 if self.gamma == 1 else 1

    def combine(self, past: Node, a: Node, b: Node) -> tuple[float, float, float]:
        (ahead, d_ahead), (behind, d_behind) = ddim(a, b), ddim(a, past)
        return self.gamma, ahead - self.gamma * behind, d_ahead - self.gamma * d_behind


@dataclass(frozen=True)
class BELM(Leapfrog):
    r"""Bidirectional explicit linear multistep sampler with the least local error (O-BELM).

    With :math:`y = x/\alpha`, steps :math:`h_k = \rho_{k+1} - \rho_k` and
    :math:`r = h_k/h_{k-1}`,

    .. math:: y_{k+1} = r^2 y_{k-1} + (1 - r^2) y_k + h_k (1 + r)\,\hat\epsilon_k .

    Order 2, one evaluation a step. Its zero-stable direction is that towards the data where steps
    in rho shrink; encoding enlarges rounding by the ratio of the first step's square to the last's.

    Source: Wang et al. 2024, arXiv:2410.07273, section 3.3.
    """

    order = 2

    def combine(self, past: Node, a: Node, b: Node) -> tuple[float, float, float]:
        before = a.rho - past.rho
        # Of a mode whose rho stays the same the steps are alike, and all return the state before.
        ratio = (b.rho - a.rho) / before if before else float(a.rho == b.rho)
        x = (1 + ratio) * (b.sigma / a.sigma - ratio * b.alpha / a.alpha)
        d = (1 + ratio) * (b.alpha - a.alpha * b.sigma / a.sigma)
        return ratio * ratio * b.alpha / past.alpha, x, d


@dataclass(frozen=True)
class EDICT(Inversion):
    r"""Exact diffusion inversion via coupled transformations: two copies of the state.

    Each in turn takes DDIM's step with the noise prediction of the other, at the same node; then
    both are mixed,

    .. math:: \xi &= r x + (\sigma_b - r\sigma_a)\,\hat\epsilon(y, a),\qquad
              \eta = r y + (\sigma_b - r\sigma_a)\,\hat\epsilon(\xi, a),\qquad
              r = \alpha_b/\alpha_a, \\
              x' &= p\,\xi + (1 - p)\,\eta,\qquad y' = p\,\eta + (1 - p)\,x' .

    Which of the two takes DDIM's step first alternates from step to step. A step enlarges areas in
    the plane of x and y by :math:`(p r)^2`, whatever the denoiser. The flow of a mode of variance
    :math:`\lambda` takes up one factor :math:`\sqrt{(\alpha_b^2\lambda + \sigma_b^2)/
    (\alpha_a^2\lambda + \sigma_a^2)}`, so over N steps the difference of the copies grows beyond
    the flow by about

    .. math:: p^{2N}\,\frac{\lambda + \rho_0^2}{\lambda + \rho_N^2} :

    with few steps the method is unstable towards the data, and mixing needs many to make up for it.
    Order 1, two evaluations a step. A grid on which nothing of a double would remain is refused.

    With ``holds="denoised"`` each takes the denoised state of the other instead,
    :math:`\xi = A x + B\,D(y, a)` as in DDIM's other form. The areas then shrink with
    :math:`(p\,\sigma_b/\sigma_a)^2`: stable towards the data, and encoding enlarges by as much what
    the copies differ by. So goes every step from pure noise, where r is infinite.

    Source: Wallace, Gokul & Naik 2023, arXiv:2211.12446, and the authors' code (alternation).
    """

    p: Annotated[float, Param("mixing: 1 keeps the copies apart", gt=0.5, le=1)] = 0.93
    holds: Annotated[
        Literal["noise", "denoised"], Param("which prediction of the other copy a step takes")
    ] = "noise"

    order = 1
    exact = True
    states = ("x", "y")

    def forth(self, nodes: Sequence[Node]) -> tuple[Steps, Steps, Steps]:
        opening = (Step(nodes[0], nodes[0], (Combine("y", {"x": 1.0}),)),)
        closing, middle = nodes[-1].sigma == 0, []
        pairs = list(pairwise(nodes[: len(nodes) - closing]))
        self._refuse_growth(pairs)
        for k, (a, b) in enumerate(pairs):
            (one, two), (own, other, d) = _turns(k), self._coupling(a, b)
            rows = (
                Evaluate("D", two, a),
                Combine(one, {one: own, two: other, "D": d}),
                Evaluate("D", one, a),
                Combine(two, {two: own, one: other, "D": d}),
                Combine("x", {"x": self.p, "y": 1 - self.p}),
                Combine("y", {"y": self.p, "x": 1 - self.p}),
            )
            middle.append(Step(a, b, rows))
        return opening, tuple(middle), ddim_steps(nodes[-2:] if closing else ())

    def back(self, nodes: Sequence[Node]) -> tuple[Steps, Steps, Steps]:
        departure = (Step(nodes[-1], nodes[-1], (Combine("y", {"x": 1.0}),)),)
        undoing = []
        for k, (a, b) in reversed(list(enumerate(pairwise(nodes)))):
            (one, two), (own, other, d) = _turns(k), self._coupling(a, b)
            rows = (
                Combine("y", {"y": 1 / self.p, "x": 1 - 1 / self.p}),
                Combine("x", {"x": 1 / self.p, "y": 1 - 1 / self.p}),
                Evaluate("D", one, a),
                Combine(two, {two: 1 / own, one: -other / own, "D": -d / own}),
                Evaluate("D", two, a),
                Combine(one, {one: 1 / own, two: -other / own, "D": -d / own}),
            )
            undoing.append(Step(b, a, rows))
        return departure, tuple(undoing), ()

    def _by_denoised(self, a: Node) -> bool:
        return self.holds == "denoised" or a.alpha <= LEAST

    def _refuse_growth(self, pairs: Sequence[tuple[Node, Node]]) -> None:
        """Raise if the difference of the copies would grow by more than doubles resolve."""
        steps = [self.p * a.rho / b.rho for a, b in pairs if not self._by_denoised(a)]
        growth = 2 * sum(math.log10(step) for step in steps)
        if growth > 16:
            raise ValueError(
                f"{self!r} enlarges what its two copies differ by up to 1e{growth:.0f}-fold on "
                "this grid, and nothing of the state would remain; take "
                'EDICT(holds="denoised"), or a grid of more steps or of a smaller range in rho.'
            )

    def _coupling(self, a: Node, b: Node) -> tuple[float, float, float]:
        """Coefficients of a copy, of the other and of D of the other in DDIM's step of a copy."""
        whole, d = ddim(a, b)  # of the state, where both copies are one
        own = whole if self._by_denoised(a) else b.alpha / a.alpha
        return own, whole - own, d

    def nfe(self, grid: Grid) -> int:
        return 2 * grid.steps - (grid.sigma[-1] == 0)


def _turns(step: int) -> tuple[str, str]:
    """Which of the two copies goes first."""
    return ("y", "x") if step % 2 else ("x", "y")
