r"""Networks as denoisers: what a module predicts under the process it was trained with.

With :math:`x = \alpha x_0 + \sigma\epsilon` at the time t of the module's own process and its
answer F, the posterior mean is

.. math:: \text{denoised: } F,\qquad \text{noise: } (x - \sigma F)/\alpha,\qquad
          \text{score: } (x + \sigma^2 F)/\alpha,

.. math:: \text{velocity } F = \dot\alpha x_0 + \dot\sigma\epsilon:\quad
          \frac{\dot\sigma x - \sigma F}{\alpha\dot\sigma - \sigma\dot\alpha},\qquad
          \text{edm: } c_{skip}\,y + c_{out}\,F(c_{in}\,y, c_{noise}),\ y = x/\alpha .

A state of another process is asked for at the time of the same :math:`\rho = \sigma/\alpha`, scaled
to what the module saw there: :math:`D(c x, c\alpha, c\sigma) = D(x, \alpha, \sigma)`.

Source of the scalings: Karras et al. 2022, arXiv:2206.00364, table 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from workbench.denoisers.base import Denoiser
from workbench.denoisers.precondition import edm_preconditioning
from workbench.processes import Process

__all__ = ["Neural"]

#: The rho beyond which a predicted noise is not asked: float32 keeps three digits of D there.
LOST = 1e4

Predicts = Literal["denoised", "noise", "velocity", "score", "edm"]


class Neural(Denoiser):
    """Any callable ``module(x, t)`` as a denoiser: states (n, *event) and times (n,) in.

    Under ``"edm"`` the second argument is the noise condition, a quarter of log rho, and the module
    is the raw network inside EDM's scalings.

    Args:
        module: a ``torch.nn.Module`` or any callable; differentiable, if derivatives are asked for.
        predicts: what it answers with.
        trained_under: the process whose t it was trained with, with one alpha and sigma.
        event_shape: shape of one sample; None: that of the states it is asked with first.
        data: the data it was trained on, a Data or a tensor (N, *event), for mean and spread; None:
            they are measured at the largest noise it knows.
        sigma_data: of EDM's scalings.
        dtype, device: those of the module's parameters, unless it has none.

    Raises:
        TypeError: a module that cannot be called, or something that is not a process.
        ValueError: another word in ``predicts``.
    """

    def __init__(
        self,
        module: Callable,
        predicts: Predicts,
        trained_under: Process,
        event_shape=None,
        data=None,
        sigma_data: float = 0.5,
        dtype: torch.dtype | None = None,
        device=None,
    ) -> None:
        if not callable(module):
            raise TypeError(f"module was {module!r}; it must be callable as module(x, t).")
        if predicts not in get_args(Predicts):
            choices = ", ".join(map(repr, get_args(Predicts)))
            raise ValueError(f"predicts was {predicts!r}; it must be one of {choices}.")
        if not isinstance(trained_under, Process) or not trained_under.single_level:
            raise TypeError(
                f"trained_under was {trained_under!r}; it must be a process with one alpha and "
                "sigma, such as wb.VP()."
            )
        self.module, self.predicts, self.process = module, predicts, trained_under
        self.sigma_data = float(sigma_data)
        parameters = module.parameters() if isinstance(module, torch.nn.Module) else ()
        first = next((p for p in parameters if p.is_floating_point()), None)
        held = torch.empty(0, dtype=dtype, device=device) if first is None else first
        self.dtype, self.device = held.dtype, held.device
        points = getattr(data, "points", data)
        if points is not None:
            points = torch.as_tensor(points)
            self.mean = points.double().mean(0).to(self.device, self.dtype)
            self.std = points.double().var(0, correction=0).mean().sqrt().item()
            event_shape = points.shape[1:] if event_shape is None else event_shape
        if event_shape is not None:
            self.event_shape = torch.Size(event_shape)
        self.least_rho, largest = trained_under(0.0).rho, trained_under(trained_under.t_max).rho
        # Noise and score say nothing of the data where these are lost: (x - sigma F)/alpha.
        lost = predicts in ("noise", "score")
        self.largest_rho = min(largest, LOST) if lost else largest

    def __getattr__(self, name: str):
        if name == "event_shape":
            raise AttributeError(
                f"{self!r} does not know the shape of a sample yet: give event_shape, or ask it "
                "with states (n, *event) first."
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def _flat(self, x: Tensor) -> Tensor:
        if "event_shape" not in vars(self):
            self.event_shape = x.shape[1:]
        return super()._flat(x)

    def posterior_mean(self, x: Tensor, alpha, sigma) -> Tensor:
        ones = x.new_ones(len(x), *(1,) * (x.ndim - 1), dtype=torch.float64)
        alpha, sigma = alpha * ones, sigma * ones
        rho = (sigma / alpha).clamp(self.least_rho, self.largest_rho)
        if self.predicts == "edm":
            c = edm_preconditioning(rho.clamp_min(1e-30), self.sigma_data)
            y = (torch.hypot(rho, torch.ones_like(rho)) / torch.hypot(alpha, sigma) * x).to(x.dtype)
            skip, out, into, noise = (v.to(x.dtype) for v in c[:4])
            return skip * y + out * self.module(into * y, noise.flatten())
        t = self.process.time_of(rho.flatten())
        c = self.process(t).map(lambda v: v.reshape(rho.shape))
        # As the module saw it: x scaled by the length of (alpha, sigma) there over that here.
        scale = torch.hypot(c.alpha, c.sigma) / torch.hypot(alpha, sigma)
        y = (scale * x).to(x.dtype)
        a, s, d_a, d_s = (v.to(x.dtype) for v in (c.alpha, c.sigma, c.d_alpha, c.d_sigma))
        answer = self.module(y, t.to(x.dtype))
        if self.predicts == "denoised":
            return answer
        if self.predicts == "noise":
            return (y - s * answer) / a
        if self.predicts == "score":
            return (y + s * s * answer) / a
        return (d_s * y - s * answer) / (a * d_s - s * d_a)

    def to(self, dtype: torch.dtype | None = None, device=None) -> Neural:
        made = super().to(dtype, device)
        if isinstance(self.module, torch.nn.Module):
            vars(made)["module"] = copy.deepcopy(self.module).to(made.device, made.dtype)
        return made

    def __repr__(self) -> str:
        name = type(self.module).__name__
        return f"Neural({name} predicts {self.predicts}, trained under {self.process!r})"
