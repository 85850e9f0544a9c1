r"""Networks as denoisers: what a module predicts under the process it was trained with.

With :math:`x = \alpha x_0 + \sigma\epsilon` at the time t of the module's own process and its
answer F, the posterior mean is

.. math:: \text{denoised: } F,\qquad \text{noise: } (x - \sigma F)/\alpha,\qquad
          \text{score: } (x + \sigma^2 F)/\alpha,

.. math:: \text{velocity } F = \dot\alpha x_0 + \dot\sigma\epsilon:\quad
          \frac{\dot\sigma x - \sigma F}{\alpha\dot\sigma - \sigma\dot\alpha},\qquad
          \text{edm: } m + c_{skip}\,z + c_{out}\,F(c_{in}\,z, c_{noise}),\ z = x/\alpha - m .

A state of another process is asked for at the time of the same :math:`\rho = \sigma/\alpha`, scaled
to what the module saw there: :math:`D(c x, c\alpha, c\sigma) = D(x, \alpha, \sigma)`.

Source of the scalings: Karras et al. 2022, arXiv:2206.00364, table 1.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor

from workbench import registry
from workbench.denoisers import checkpoints
from workbench.denoisers.base import Denoiser
from workbench.denoisers.guard import guard
from workbench.denoisers.precondition import edm_denoised
from workbench.params import Param, shown
from workbench.processes import EDM, Process

#: The rho beyond which a predicted noise is not asked: float32 keeps three digits of D there.
LOST = 1e4

#: The rho, in spreads of the data, below which a state is its own posterior mean.
CLEAN = 1e-6

#: Stands for the checkpoint that has the name of the data.
MATCHING = "matching"

#: How far beyond its noise levels a network of discrete times is still asked, at their end.
SLACK = 1e-3

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
        centre: m of EDM's scalings, a tensor of shape ``event`` or a number; None: 0.
        times: of a network of discrete times: the times of ``trained_under`` that its indices
            0, 1, ... stand for, rising. It is then called with an index, between two of them with a
            fraction (linear in log rho), and refuses noise levels outside.
        whole: round an index to the nearest whole one.
        condition: what the third argument holds for each sample: a class as an integer, or a tensor
            of the shape for one sample. None: it is called with two arguments.
        unconditional: what stands for no condition, for guidance: like ``condition``.
        guidance: strength w of classifier-free guidance, :math:`(1 + w) D_c - w D`; 0 is none.
        dtype, device: those of the module's parameters, unless it has none.

    Raises:
        TypeError: a module that cannot be called, or something that is not a process.
        ValueError: another word in ``predicts``; weights that are not finite; a condition that the
            module does not take; guidance without ``unconditional``; times that do not rise or lie
            outside the process's.

    Source of guidance: Ho & Salimans 2022, arXiv:2207.12598.
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
        *,
        centre: Tensor | float | None = None,
        times: Sequence[float] | Tensor | None = None,
        whole: bool = False,
        condition: int | Tensor | None = None,
        unconditional: int | Tensor | None = None,
        guidance: float = 0.0,
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
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data was {sigma_data!r}; it must be positive and finite.")
        named = module.named_parameters() if isinstance(module, torch.nn.Module) else ()
        floating = [(name, p) for name, p in named if p.is_floating_point()]
        bad = [name for name, p in floating if not bool(p.isfinite().all())]
        if bad:
            raise ValueError(
                f"{len(bad)} of the weights of {type(module).__name__} are not finite, first "
                f"{bad[0]}; load others, its training has diverged."
            )
        held = floating[0][1] if floating else torch.empty(0, dtype=dtype, device=device)
        self.dtype, self.device = held.dtype, held.device
        self.centre = None if centre is None else torch.as_tensor(centre).to(held)
        points = getattr(data, "points", data)
        if points is not None:
            points = torch.as_tensor(points)
            self._of(points)
            event_shape = points.shape[1:] if event_shape is None else event_shape
        if event_shape is not None:
            self.event_shape = torch.Size(event_shape)
        self.least_rho, largest = trained_under(0.0).rho, trained_under(trained_under.t_max).rho
        # Noise and score say nothing of the data where these are lost: (x - sigma F)/alpha.
        lost = predicts in ("noise", "score")
        self.largest_rho = min(largest, LOST) if lost else largest
        self.levels, self.whole = self._discrete(times), bool(whole)
        self._conditioned(condition, unconditional, guidance)

    def _discrete(self, times) -> Tensor | None:
        """log rho of each index (N,), float64."""
        if times is None:
            return None
        times = torch.as_tensor(times, dtype=torch.float64).flatten()
        if self.predicts == "edm":
            raise ValueError("times were given; under 'edm' a network is asked with a noise level.")
        inside = (times > 0) & (times <= self.process.t_max)
        if len(times) < 2 or not bool((times.diff() > 0).all()) or not bool(inside.all()):
            raise ValueError(
                f"times were {shown(times.tolist())}; they must be two or more, rising, greater "
                f"than 0 and at most {self.process.t_max:g}, the end of {self.process!r}."
            )
        rho = self.process(times).rho
        finite = rho.isfinite()
        self.largest_rho = rho[finite].max().item()
        self.least_rho = rho[0].item()
        return rho.log().to(self.device)

    def _conditioned(self, condition, unconditional, guidance: float) -> None:
        if not math.isfinite(guidance):
            raise ValueError(f"guidance was {guidance!r}; it must be finite, 0 for none.")
        if guidance and (condition is None or unconditional is None):
            raise ValueError(
                f"guidance was {guidance:g}; it needs condition and unconditional, what stands for "
                "no condition in this network."
            )
        if condition is not None and not _takes_three(self.module):
            raise ValueError(
                f"condition was {shown(condition)}, and {type(self.module).__name__} takes no "
                "third argument; leave it out, or wrap the module as module(x, t, condition)."
            )
        as_tensor = lambda c: None if c is None else torch.as_tensor(c).to(self.device)  # noqa: E731
        self.condition, self.unconditional = as_tensor(condition), as_tensor(unconditional)
        self.guidance = float(guidance)
        self.notes = ()
        if guidance:
            self.notes = (
                f"Guidance with weight {guidance:g}: the score is a combination of two, not that "
                "of the noised versions of any one law.",
            )

    # -- checkpoints -----------------------------------------------------------------------------

    @classmethod
    def load(
        cls, path: str | Path, label: int | None = None, guidance: float = 0.0, data=None
    ) -> Neural:
        """The network of a checkpoint that ``workbench train`` has written, in float32.

        Or of a file in another registered format, see :func:`workbench.register`.

        Args:
            path: of the ``.safetensors`` file, or of a pipeline of diffusers, or a network and its
                card, packed as a zip file.
            label: the class that it is conditioned on; None: none.
            guidance: strength of classifier-free guidance towards it.
            data: for mean and spread; None: the centre and spread that the card says.

        Raises:
            CheckpointError: a file that is not such a checkpoint, weights that do not match its
                card or are not finite.
            ValueError: a class that the network does not know.
        """
        if checkpoints.is_foreign(path):
            for one in registry.entries("format").values():
                if (net := one.target(Path(path), label, guidance)) is not None:
                    return net
        network, card, centre = checkpoints.network_of(Path(path))
        classes = card["classes"]
        if label is not None and not 0 <= label < classes:
            needed = f"one of 0 to {classes - 1}" if classes else "left out: it knows no classes"
            raise ValueError(f"label was {label!r}; for this network it must be {needed}.")
        net = cls(
            network,
            "edm",
            EDM(sigma_max=card["largest_rho"]),
            card["event_shape"],
            data,
            card["sigma_data"],
            centre=centre,
            condition=label,
            unconditional=classes if label is not None else None,
            guidance=guidance,
        )
        vars(net).update(card=card, path=Path(path))
        if data is None and label is None:
            vars(net).update(mean=centre, std=card["sigma_data"])
        return net

    @classmethod
    def from_data(
        cls,
        data,
        checkpoint: Annotated[
            str,
            Param(
                "a network that ships; matching: the one trained on these data",
                choices=lambda: (MATCHING, *checkpoints.shipped()),
            ),
        ] = MATCHING,
        file: Annotated[
            Path | None,
            Param(
                "instead, a checkpoint of workbench train, a pipeline of diffusers, or an ONNX "
                "file with its card"
            ),
        ] = None,
        label: Annotated[
            int | None, Param("class it is conditioned on; none: of all of them", ge=0)
        ] = None,
        guidance: Annotated[
            float, Param("strength w of guidance towards the class; 0 is none")
        ] = 0.0,
    ) -> Neural:
        """A trained network: one that ships, or a checkpoint of ``workbench train``.

        Or one of others: a pipeline of diffusers, its folder or that packed as a zip file; an ONNX
        file with its card, likewise; TorchScript where it is trusted. One of a file is tried first
        on the data it was trained on, of others on the data given, see
        :mod:`workbench.denoisers.guard`.
        """
        own = file is not None
        if not own:
            name = data.name if checkpoint == MATCHING else checkpoint
            if name not in checkpoints.shipped():
                names = ", ".join(checkpoints.shipped()) or "none"
                raise ValueError(
                    f"no network ships for the data {data.name}; there are {names}. Name one as "
                    "checkpoint, give a file, or train one: workbench train."
                )
            file = checkpoints.shipped_folder() / f"{name}.safetensors"
        net = cls.load(file, label, guidance)
        if net.event_shape == (1, *data.event_shape):
            net = copy.copy(net)
            vars(net).update(module=_OneChannel(net.module), event_shape=data.event_shape)
        card = vars(net).get("card")
        if net.event_shape != data.event_shape:
            trained = f", {card.get('data', {}).get('name', 'unknown')}" if card else ""
            raise ValueError(
                f"the network is for samples of shape {tuple(net.event_shape)}, and {data.name} "
                f"has {tuple(data.event_shape)}; take the data it was trained on{trained}."
            )
        foreign = card is None
        if foreign and label is None:
            net._of(data.points)
        hashed = not foreign and card.get("data", {}).get("sha256")
        if foreign or (own and hashed == checkpoints.data_hash(data.points)):
            guard(net, data.points).check()
        return net

    def _of(self, points: Tensor) -> None:
        """Take mean and spread from data points (N, *event)."""
        mean = points.double().mean(0).to(self.device, self.dtype)
        std = points.double().var(0, correction=0).mean().sqrt().item()
        vars(self).update(mean=mean, std=std)

    def given(self, condition: int | Tensor | None, guidance: float = 0.0) -> Neural:
        """The same network under another condition.

        Args:
            condition: as in the constructor; None: what stands for none.
            guidance: strength of guidance towards it.
        """
        none = self.unconditional
        if none is None and "card" in vars(self):
            none = self.card["classes"] or None
            if isinstance(condition, int) and not 0 <= condition < (none or 0):
                needed = f"one of 0 to {none - 1}" if none else "left out: it knows no classes"
                raise ValueError(
                    f"condition was {condition!r}; for this network it must be {needed}."
                )
        made = copy.copy(self)
        for name in ("mean", "std"):  # of another law
            vars(made).pop(name, None)
        made._conditioned(condition, none, guidance)
        return made

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

    # -- its answer ------------------------------------------------------------------------------

    def posterior_mean(self, x: Tensor, alpha, sigma) -> Tensor:
        if self.guidance:
            towards = self._posterior_mean(x, alpha, sigma, self.condition)
            whole = self._posterior_mean(x, alpha, sigma, self.unconditional)
            return towards + self.guidance * (towards - whole)
        return self._posterior_mean(x, alpha, sigma, self.condition)

    def _posterior_mean(self, x: Tensor, alpha, sigma, condition: Tensor | None) -> Tensor:
        ones = x.new_ones(len(x), *(1,) * (x.ndim - 1), dtype=torch.float64)
        alpha, sigma = alpha * ones, sigma * ones
        asked = sigma / alpha
        index = None if self.levels is None else self._index(asked)
        rho = asked.clamp(self.least_rho, self.largest_rho)
        if index is not None and self.whole:  # the noise of the index it is called with
            rho = self.levels[index.long()].exp().reshape(rho.shape).clamp_max(self.largest_rho)
        if self.predicts == "edm":
            rho = rho.clamp_min(1e-30)
            y = (torch.hypot(rho, torch.ones_like(rho)) / torch.hypot(alpha, sigma) * x).to(x.dtype)
            call = lambda scaled, noise: self._answer(scaled, noise, condition)  # noqa: E731
            return edm_denoised(call, y, rho, self.sigma_data, self.centre)
        t = self.process.time_of(rho.flatten())
        c = self.process(t).map(lambda v: v.reshape(rho.shape))
        # As the module saw it: x scaled by the length of (alpha, sigma) there over that here.
        scale = torch.hypot(c.alpha, c.sigma) / torch.hypot(alpha, sigma)
        y = (scale * x).to(x.dtype)
        a, s, d_a, d_s = (v.to(x.dtype) for v in (c.alpha, c.sigma, c.d_alpha, c.d_sigma))
        answer = self._answer(y, (t if index is None else index).to(x.dtype), condition)
        if self.predicts == "denoised":
            denoised = answer
        elif self.predicts == "noise":
            denoised = (y - s * answer) / a
        elif self.predicts == "score":
            denoised = (y + s * s * answer) / a
        else:
            denoised = (d_s * y - s * answer) / (a * d_s - s * d_a)
        if index is None:
            return denoised
        return torch.where(asked < self._clean, (x / alpha).to(x.dtype), denoised)

    @property
    def _clean(self) -> float:
        return CLEAN * vars(self).get("std", 1.0)

    def _index(self, rho: Tensor) -> Tensor:
        """The index of each noise level (n,), between two of them with a fraction."""
        least, most = self.levels[0].exp().item(), self.largest_rho
        outside = (rho > (1 + SLACK) * most) | ((rho < (1 - SLACK) * least) & (rho >= self._clean))
        if bool(outside.any()):
            raise ValueError(
                f"rho was {rho[outside][0].item():.4g}; this network of {len(self.levels)} "
                f"discrete times knows noise levels sigma/alpha of {least:.4g} to {most:.4g}. "
                "Begin and end the grid there."
            )
        log = rho.flatten().clamp(least, most).log()
        above = torch.searchsorted(self.levels, log).clamp(1, len(self.levels) - 1)
        low, high = self.levels[above - 1], self.levels[above]
        share = torch.where(high.isfinite(), (log - low) / (high - low), 0.0)
        index = above - 1 + share.clamp(0, 1)
        return index.round() if self.whole else index

    def _answer(self, y: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """What the module answers, its shape checked."""
        if condition is None:
            answer = self.module(y, t)
        else:
            answer = self.module(y, t, condition.expand(len(y), *condition.shape))
        if not isinstance(answer, Tensor):
            raise ValueError(
                f"{type(self.module).__name__} answered with {type(answer).__name__}; it must be a "
                "tensor in the shape of the states. Wrap it, e.g. lambda x, t: module(x, t).sample."
            )
        if answer.shape != y.shape:
            hint = ""
            if answer.ndim == y.ndim > 2 and answer.shape[1] == 2 * y.shape[1]:
                hint = " Twice the channels: half are a variance; wrap it to give the first."
            raise ValueError(
                f"{self!r} answered with shape {tuple(answer.shape)} to states of shape "
                f"{tuple(y.shape)}; it must give one value for each.{hint}"
            )
        return answer

    def to(self, dtype: torch.dtype | None = None, device=None) -> Neural:
        made = super().to(dtype, device)
        if isinstance(self.module, torch.nn.Module):
            vars(made)["module"] = copy.deepcopy(self.module).to(made.device, made.dtype)
        if self.levels is not None:
            vars(made)["levels"] = self.levels.to(made.device)
        return made

    def __repr__(self) -> str:
        name = type(getattr(self.module, "model", self.module)).__name__  # what an adapter holds
        given = ""
        if self.condition is not None:
            given = (
                f" given {self.condition.tolist()!r}" if self.condition.ndim == 0 else " given one"
            )
        trained = f"under {self.process!r}"
        if self.levels is not None:  # a table of times says more than the process they are put in
            least, most = (rho.exp().item() for rho in (self.levels[0], self.levels[-1]))
            trained = f"at {len(self.levels)} noise levels, sigma/alpha {least:.3g} to {most:.3g}"
        return f"Neural({name}{given} predicts {self.predicts}, trained {trained})"


class _OneChannel(torch.nn.Module):
    """A module of images (n, 1, height, width), asked with images (n, height, width)."""

    def __init__(self, module: Callable) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, t: Tensor, *condition: Tensor) -> Tensor:
        return self.module(x.unsqueeze(1), t, *condition).squeeze(1)


def _takes_three(module: Callable) -> bool:
    """Whether a module can be called with states, times and a condition."""
    function: Any = module.forward if isinstance(module, torch.nn.Module) else module
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # of a builtin nothing is known
        return True
    return True
