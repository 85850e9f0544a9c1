"""Log-likelihood of the samples under the model's own probability flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import xarray as xr

from workbench.exact.likelihood import log_likelihood
from workbench.lenses.base import Lens, OnStep, Subject
from workbench.params import Param

__all__ = ["Likelihood"]


@dataclass(frozen=True)
class Likelihood(Lens):
    """How likely are the samples under the model's own probability flow?

    The instantaneous change of variables is integrated from each final state to the noise, with
    the exact divergence. Beside it stands the model's own log-density at the same states, where it
    has one. A high density is not a typical sample: the mode of a Gaussian in many dimensions is
    never drawn (Karczewski et al. 2024, arXiv:2411.01293).

    Sources: Chen et al. 2018, arXiv:1806.07366; Song et al. 2021, arXiv:2011.13456.
    """

    samples: Annotated[int, Param("how many samples it looks at", ge=2, le=100_000)] = 64
    tolerance: Annotated[float, Param("relative tolerance of a step", ge=1e-12, le=1e-2)] = 1e-6

    reads = ("final",)

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 256 * self.samples * dim

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        final, t = subject.field("final"), self._end(subject)
        tolerance = self.tolerance
        found = log_likelihood(
            subject.diffusion, final, t, rtol=tolerance, atol=1e-2 * tolerance
        ).log_prob
        numbers = {"log_prob": found.mean().item()}
        numbers["bits"] = -numbers["log_prob"] / (subject.denoiser.dim * math.log(2))
        error = found.std().item() / math.sqrt(len(found))
        numbers["log_prob_se"] = error
        numbers["bits_se"] = error / (subject.denoiser.dim * math.log(2))
        about = {
            "log_prob": "mean log-density of the samples under the model's flow",
            "bits": "bits per dimension of the samples under the model's flow",
        }
        units = {"log_prob": "nats", "bits": "bits per dimension"}
        return xr.Dataset(
            {
                name: (
                    (),
                    value,
                    {"units": units[name.removesuffix("_se")]}
                    | ({"long_name": about[name]} if name in about else {}),
                )
                for name, value in numbers.items()
            }
        )

    def exact(self, subject: Subject) -> xr.Dataset | None:
        try:
            mine = subject.diffusion.log_prob(subject.field("final"), self._end(subject))
        except NotImplementedError:
            return None
        value = mine.double().mean().item()
        return xr.Dataset(
            {"log_prob": value, "bits": -value / (subject.denoiser.dim * math.log(2))}
        )

    def findings(self, dataset: xr.Dataset) -> list[str]:
        said = (
            f"The samples have {float(dataset['log_prob']):.4g} nats on average under the model's "
            f"flow ({float(dataset['bits']):.3g} bits per dimension)"
        )
        if "log_prob_exact" in dataset:
            said += f"; its own log-density there is {float(dataset['log_prob_exact']):.4g}"
        return [said + "."]

    def _end(self, subject: Subject) -> float:
        if subject.grid.sigma[-1] == 0:
            raise NotImplementedError(
                "the run ends at sigma = 0, where a flow has no density to compare; take "
                'final="stop".'
            )
        return subject.grid.t[-1]
