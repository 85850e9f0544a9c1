"""Ordinary differential equations to a tolerance, each sample with steps of its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: Attempts after which a run is given up.
ATTEMPTS = 20_000


def integrate(
    field: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    start: float,
    end: float,
    rtol: float = 1e-10,
    atol: float = 1e-12,
    groups: tuple[int, ...] | None = None,
) -> tuple[Tensor, int]:
    """Solve ``dy/dt = field(y, t)`` from ``start`` to ``end``, either direction, in float64.

    Order 8 with an error estimate of order 5 corrected by one of order 3. Each sample chooses its
    steps by its own error alone, so its result does not depend on which others are in the batch.

    Args:
        field: of states (n, m) and times (n,), float64; called with the samples still under way.
        y: initial states (n, m).
        start, end: times.
        rtol, atol: tolerances of a step, relative to an element and absolute.
        groups: sizes, adding up to m, of groups of elements. Each group's root mean square error
            must be within the tolerance, so that many elements do not hide one; None: one group.

    Returns:
        The states at ``end``, and for how many samples the field was asked in all.

    Raises:
        ValueError: tolerances that float64 cannot keep, or a field that is not finite.
        RuntimeError: steps below the rounding of t, or very many.

    Source: Hairer, Nørsett & Wanner 1993, *Solving Ordinary Differential Equations I*, section
    II.10 (DOP853).
    """
    from scipy.integrate import DOP853

    if not (rtol >= 1e-14 and 0 < atol < math.inf and rtol < 1):
        raise ValueError(
            f"rtol was {rtol!r} and atol {atol!r}; rtol must be from 1e-14 to 1, atol positive."
        )
    table = _Table(DOP853, y.device, groups or (y.shape[1],))
    y = y.double().clone()
    if start == end or not len(y):
        return y, 0
    sign = math.copysign(1.0, end - start)
    t = y.new_full((len(y),), start)
    slope = _finite(field(y, t), t)
    h = table.first_step(field, y, t, slope, sign, abs(end - start), rtol, atol)
    asked, active, grew = 2 * len(y), torch.arange(len(y), device=y.device), torch.ones_like(h)
    for _ in range(ATTEMPTS):
        now, state = t[active], y[active]
        left = (end - now).abs()
        size = torch.minimum(h[active], left)
        if bool((size <= 4 * torch.finfo(t.dtype).eps * now.abs()).any()):
            raise RuntimeError(
                f"the steps fell below rounding at t = {now[size.argmin()].item():g}; the field "
                "changes too fast there. Start or stop elsewhere, or ask for less."
            )
        last = size == left
        then = torch.where(last, end, now + sign * size)
        new, new_slope, error = table.step(
            field, state, now, then, sign * size, slope[active], rtol, atol
        )
        asked += 12 * len(active)
        accepted = error < 1
        factor = (0.9 * error.clamp_min(1e-16) ** -0.125).clamp(0.2, 10.0)
        factor = torch.where(accepted, torch.minimum(factor, grew[active]), factor.clamp(max=1.0))
        h[active] = size * factor
        grew[active] = 1.0 + 9.0 * accepted.to(h)  # after a failure, no growth at once
        moved = active[accepted]
        t[moved], y[moved], slope[moved] = then[accepted], new[accepted], new_slope[accepted]
        active = active[~(accepted & last)]
        if not len(active):
            return y, asked
    raise RuntimeError(f"no end after {ATTEMPTS} steps; ask for a larger rtol or atol.")


class _Table:
    """The coefficients of the method, and one step of it for many samples."""

    def __init__(self, method, device, groups: tuple[int, ...]) -> None:
        as_tensor = lambda a: torch.tensor(a.tolist(), dtype=torch.float64, device=device)  # noqa: E731
        self.a, self.b, self.c = as_tensor(method.A), as_tensor(method.B), method.C.tolist()
        self.errors = torch.stack([as_tensor(method.E5), as_tensor(method.E3)])
        self.groups = groups

    def step(self, field, y, t, then, h, slope, rtol, atol) -> tuple[Tensor, Tensor, Tensor]:
        """States and slopes at ``then``, and the error in units of the tolerance (n,)."""
        stages = y.new_empty(len(self.b) + 1, *y.shape)
        stages[0] = slope
        h = h[:, None]
        for i, c in enumerate(self.c[1 : len(self.b)], 1):
            at = then if c == 1.0 else t + c * h[:, 0]
            inner = y + h * torch.tensordot(self.a[i, :i], stages[:i], 1)
            stages[i] = _finite(field(inner, at), at)
        new = y + h * torch.tensordot(self.b, stages[:-1], 1)
        stages[-1] = _finite(field(new, then), then)
        scale = atol + rtol * torch.maximum(y.abs(), new.abs())
        fifth, third = h * torch.tensordot(self.errors, stages, 1) / scale
        each = []
        for five, three in zip(
            fifth.split(self.groups, 1), third.split(self.groups, 1), strict=True
        ):
            square, other = five.square().mean(1), three.square().mean(1)
            each.append(square / (square + 0.01 * other).sqrt().clamp_min(1e-300))
        return new, stages[-1], torch.stack(each).amax(0)

    def first_step(self, field, y, t, slope, sign, span, rtol, atol) -> Tensor:
        """A cautious first step from the sizes of the state, its slope and its curvature (n,)."""
        scale = atol + rtol * y.abs()
        size = (y / scale).square().mean(1).sqrt()
        speed = (slope / scale).square().mean(1).sqrt()
        small = (size < 1e-5) | (speed < 1e-5)
        h = torch.where(small, 1e-6, 0.01 * size / speed.clamp_min(1e-300)).clamp(max=span)
        ahead = y + sign * h[:, None] * slope
        at = t + sign * h
        change = (_finite(field(ahead, at), at) - slope) / scale
        curvature = change.square().mean(1).sqrt() / h
        steepest = torch.maximum(speed, curvature)
        tried = torch.where(
            steepest <= 1e-15,
            (1e-3 * h).clamp_min(1e-6),
            (0.01 / steepest.clamp_min(1e-300)) ** 0.125,
        )
        return torch.minimum(100 * h, tried).clamp(max=span)


def _finite(slope: Tensor, t: Tensor) -> Tensor:
    bad = ~torch.isfinite(slope).all(1)
    if bool(bad.any()):
        raise ValueError(
            f"the field is not finite at t = {t[bad][0].item():g}; start or stop before that time."
        )
    return slope
