r"""Single exponential steps of order 1 to 3: evaluations inside the step, none remembered.

With :math:`h = \lambda' - \lambda`, :math:`\lambda = \log(\alpha/\sigma)`, the flow is exactly

.. math::
    x' = \tfrac{\alpha'}{\alpha} x - \alpha' \int e^{-\lambda} \hat\epsilon\, d\lambda
       = \tfrac{\sigma'}{\sigma} x + \sigma' \int e^{\lambda} D\, d\lambda ,

so a polynomial of degree 2 in its place, the noise prediction's or D's, of value :math:`f`, slope
:math:`f_1 / h` and second derivative :math:`f_2 / h^2` at the beginning, gives

.. math:: x' = (\ldots)\,x + m_1 f + m_2 f_1 + m_3 f_2

with the :func:`moments` of the weight.

Sources: Lu et al. 2022, arXiv:2206.00927, algorithms 1 and 2; Lu et al. 2022, arXiv:2211.01095,
algorithm 1; the Taylor variants: the authors' public code.
"""

from __future__ import annotations

import math
from typing import Literal

from workbench.sampling.grid import Node
from workbench.sampling.methods.base import exponential_step
from workbench.sampling.program import Combine, Evaluate, Row

#: What the polynomial stands for.
Predicts = Literal["denoised", "noise"]


def log_ratio(a: Node, b: Node) -> float:
    r"""The step :math:`h = \lambda_b - \lambda_a` from a noisier node to a cleaner one."""
    return math.log(b.alpha / b.sigma) - math.log(a.alpha / a.sigma)


def phis(h: float) -> tuple[float, float, float]:
    """phi_1 = e^h - 1, phi_2 = phi_1 / h - 1, phi_3 = phi_2 / h - 1/2, without cancellation."""
    if abs(h) < 0.1:  # the differences would lose digits
        powers = [h**k / math.factorial(k) for k in range(1, 15)]
        two = sum(p / (k + 2) for k, p in enumerate(powers))
        three = sum(p / ((k + 2) * (k + 3)) for k, p in enumerate(powers))
        return math.expm1(h), two, three
    one = math.expm1(h)
    two = one / h - 1
    return one, two, two / h - 0.5


def moments(b: Node, h: float, predicts: Predicts = "denoised") -> tuple[float, float, float]:
    r"""What a value, a slope times h and a second derivative times h² add to the state at ``b``.

    The integrals of 1, :math:`u` and :math:`u^2/2` over a step, u from 0 to 1, with its weight.
    """
    scale, h = (-b.sigma, h) if predicts == "noise" else (-b.alpha, -h)
    one, two, three = phis(h)
    return scale * one, scale * two, scale * three


def between(a: Node, b: Node, share: float) -> Node:
    """The node at a share of the way from a to b in log-SNR, with the alpha of the first."""
    return Node(a.t, a.alpha, a.alpha * a.rho * (b.rho / a.rho) ** share)


def single_step(
    a: Node, b: Node, order: int, predicts: Predicts = "denoised", taylor: bool = False
) -> tuple[Row, ...]:
    """The rows of one step, which takes ``order`` evaluations; alpha > 0 and sigma > 0 at both.

    Args:
        a, b: from the noisier node to the cleaner one.
        order: 1 to 3; 1 is DDIM's step.
        predicts: what is taken for a polynomial of log-SNR.
        taylor: orders 2 and 3: that of the highest degree which the evaluations define, instead of
            a combination of two of them of the same order.
    """
    if order == 1:
        return exponential_step(a, b)
    return (_second if order == 2 else _third)(a, b, predicts, taylor)


def _ddim(a: Node, b: Node, more: dict[str, float] | None = None) -> dict[str, float]:
    """DDIM's step from a to b, and more."""
    terms = {"x": b.sigma / a.sigma, "D": moments(b, log_ratio(a, b))[0]}
    for name, c in (more or {}).items():
        terms[name] = terms.get(name, 0.0) + c
    return terms


def _times(terms: dict[str, float], factor: float) -> dict[str, float]:
    return {name: factor * c for name, c in terms.items()}


def _plus(terms: dict[str, float], others: dict[str, float]) -> dict[str, float]:
    names = dict.fromkeys([*terms, *others])
    return {name: terms.get(name, 0.0) + others.get(name, 0.0) for name in names}


def _apart(name: str, node: Node, predicts: Predicts, added: dict[str, float]) -> dict[str, float]:
    """What the evaluation ``name`` at ``node`` differs by from the one at the step's beginning.

    Differences of noise predictions hold no x. With the state from DDIM's step and what is
    ``added`` to it, e_u - e_a = (D_a - D_u) / rho_u + added / sigma_u.
    """
    if predicts == "denoised":
        return {name: 1.0, "D": -1.0}
    return _plus({"D": 1 / node.rho, name: -1 / node.rho}, _times(added, 1 / node.sigma))


def _second(a: Node, b: Node, predicts: Predicts, taylor: bool) -> tuple[Row, ...]:
    u = between(a, b, 0.5)
    one, two, _ = moments(b, log_ratio(a, b), predicts)
    slope = _times(_apart("D2", u, predicts, {}), 2.0)
    return (
        Evaluate("D", "x", a),
        Combine("y", _ddim(a, u)),
        Evaluate("D2", "y", u),
        Combine("x", _ddim(a, b, _times(slope, two if taylor else 0.5 * one))),
    )


def _third(a: Node, b: Node, predicts: Predicts, taylor: bool) -> tuple[Row, ...]:
    h, r1, r2 = log_ratio(a, b), 1 / 3, 2 / 3
    u, v = between(a, b, r1), between(a, b, r2)
    first = _apart("D2", u, predicts, {})
    added = _times(first, r2 / r1 * moments(v, r2 * h, predicts)[1])
    second = _apart("D3", v, predicts, added)
    _, two, three = moments(b, h, predicts)
    if taylor:  # slopes 3 (f_u - f) and 3/2 (f_v - f), extrapolated to the beginning
        slope = _plus(_times(first, 6.0), _times(second, -1.5))
        bend = _plus(_times(first, -18.0), _times(second, 9.0))
        change = _plus(_times(slope, two), _times(bend, three))
    else:
        change = _times(second, two / r2)
    return (
        Evaluate("D", "x", a),
        Combine("y", _ddim(a, u)),
        Evaluate("D2", "y", u),
        Combine("y", _ddim(a, v, added)),
        Evaluate("D3", "y", v),
        Combine("x", _ddim(a, b, change)),
    )
