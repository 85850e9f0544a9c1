"""Log-likelihood of the samples under the model's own probability flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import xarray as xr

from workbench.exact.likelihood import log_likelihood
from workbench.lenses.base import Lens, OnStep, Subject, described
from workbench.lenses.errors import mean_error
from workbench.params import Param


@dataclass(frozen=True)
class Likelihood(Lens):
    """How likely are the samples under the model's own probability flow?

    The instantaneous change of variables is integrated from each final state to the noise, with
    the exact divergence or by random ``probes`` (Hutchinson; ``by_probes`` is what they add to the
    error of the mean). Beside it stands the model's own log-density at the same states, where it
    has one. A high density is not a typical sample: the mode of a Gaussian in many dimensions is
    never drawn (Karczewski et al. 2024, arXiv:2411.01293). So ``middle`` is the log-density of the
    samples' mean, a blurred state that stands for no sample, less that of the samples.

    Sources: Chen et al. 2018, arXiv:1806.07366; Song et al. 2021, arXiv:2011.13456.
    """

    samples: Annotated[int, Param("how many samples it looks at", ge=2, le=100_000)] = 64
    tolerance: Annotated[float, Param("relative tolerance of a step", ge=1e-12, le=1e-2)] = 1e-6
    probes: Annotated[
        int, Param("random directions for the divergence; 0: exact", ge=0, le=1024)
    ] = 0

    reads = ("final",)
    bytes_each = 256

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        final, t = subject.field("final"), self._end(subject)
        tolerance, dim = self.tolerance, subject.denoiser.dim
        probes = None
        if self.probes == 1:
            raise NotImplementedError("one probe has no error: take 0, or at least 2 probes.")
        if self.probes:  # one set for all states and runs, so that no sample depends on others
            generator = torch.Generator().manual_seed(0)
            shape = (self.probes, *final.shape[1:])
            probes = torch.randint(0, 2, shape, generator=generator).to(final) * 2 - 1
        states = torch.cat([final, final.mean(0, keepdim=True)])
        found = log_likelihood(
            subject.diffusion, states, t, rtol=tolerance, atol=1e-2 * tolerance, probes=probes
        )
        each = found.log_prob[:-1]
        value, error = each.mean().item(), mean_error(each).item()
        numbers = {"log_prob": value, "bits": -value / (dim * math.log(2))}
        numbers["middle"] = (found.log_prob[-1] - each.mean()).item()
        numbers |= {"log_prob_se": error, "bits_se": error / (dim * math.log(2))}
        if found.error is not None:
            numbers["by_probes"] = found.error[:-1].mean().item()
        about = {
            "log_prob": ("mean log-density of the samples under the model's flow", "nats"),
            "bits": (
                "bits per dimension of the samples under the model's flow",
                "bits per dimension",
            ),
            "middle": ("log-density of the samples' mean less that of the samples", "nats"),
            "by_probes": ("standard error of a log-density by its probes", "nats"),
        }
        return xr.Dataset(described(numbers, about))

    def exact(self, subject: Subject) -> xr.Dataset | None:
        try:
            mine = subject.diffusion.log_prob(subject.field("final"), self._end(subject))
        except NotImplementedError:
            return None
        value, dim = mine.double().mean().item(), subject.denoiser.dim
        return xr.Dataset({"log_prob": value, "bits": -value / (dim * math.log(2))})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        said = (
            f"The samples have {float(dataset['log_prob']):.4g} nats on average under the model's "
            f"flow ({float(dataset['bits']):.3g} bits per dimension)"
        )
        if "log_prob_exact" in dataset:
            said += f"; its own log-density there is {float(dataset['log_prob_exact']):.4g}"
        said = [said + "."]
        middle = float(dataset["middle"])
        if middle > 0:
            said.append(
                f"Their mean, which is no sample, would be {middle:.3g} nats likelier than they "
                "are: a high density does not make a state a typical one."
            )
        return said

    def _end(self, subject: Subject) -> float:
        if subject.grid.sigma[-1] == 0:
            raise NotImplementedError(
                "the run ends at sigma = 0, where a flow has no density to compare; take "
                'final="stop".'
            )
        return subject.grid.t[-1]
