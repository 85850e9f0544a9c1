"""The law of a sampler's output, exactly, on the Gaussian with the data's mean and covariance."""

from __future__ import annotations

from dataclasses import dataclass

import xarray as xr

from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion
from workbench.exact import kl, law, w2
from workbench.lenses.base import Lens, OnStep, Subject
from workbench.lenses.teleport import matched_gaussian

__all__ = ["Output"]


@dataclass(frozen=True)
class Output(Lens):
    """How far the sampler's output is from the marginal at the end of its grid, without sampling.

    On Gaussian data the numbers are those of the study itself; on others they are of the Gaussian
    with the mean and covariance of the data, as ``attrs["gaussian"]`` says.

    Source: Pierret & Galerne 2024, arXiv:2405.14250.
    """

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        denoiser = subject.diffusion.denoiser
        diffusion = Diffusion(subject.diffusion.process, matched_gaussian(denoiser))
        try:
            found = law(diffusion, subject.sampler, subject.grid)
        except TypeError as error:
            raise NotImplementedError(str(error)) from None
        at_end = diffusion.marginal(subject.grid.t[-1])
        if subject.grid.sigma[-1] == 0:
            at_end = diffusion.denoiser
        gaussian = isinstance(denoiser, Gaussian)
        of = "" if gaussian else ", on the Gaussian with the data's mean and covariance"
        numbers = {
            "w2": (w2(found, at_end), "exact W2 of the output to the marginal at the end [x]"),
            "kl": (kl(found, at_end), "exact KL of the output from the marginal at the end [nats]"),
            "w2_data": (w2(found, diffusion.denoiser), "exact W2 of the output to the data [x]"),
        }
        variables = {
            name: ((), value, {"long_name": about + of}) for name, (value, about) in numbers.items()
        }
        return xr.Dataset(variables, attrs={"gaussian": gaussian})
