r"""What of the seed is still in the output: mode by mode, and from one model to another.

Along the reverse process with the stochasticity :math:`\kappa` (0 the probability flow, 1 the
reverse SDE) a mode of Gaussian data with variance :math:`\lambda` has the correlation

.. math:: \operatorname{corr}(x_T, x_0) = (1 + \rho_T^2/\lambda)^{-\kappa/2}

between its start and its end: fresh noise makes a run forget its start, fine detail first. And the
same noise given to two models that never saw the same data leads to much the same samples.

Sources: derived in this project; Zhang et al. 2023, *The Emergence of Reproducibility and
Consistency in Diffusion Models*, arXiv:2310.05264; Kadkhodaie et al. 2023, arXiv:2310.02557.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import cosine_similarity

from workbench.denoisers import Denoiser, Empirical, Gaussian, checkpoints
from workbench.denoisers.neural import Neural
from workbench.exact.transfer import transfer
from workbench.lenses.base import Lens, OnStep, Subject, estimate, remembered
from workbench.lenses.checks import check_one_level
from workbench.lenses.errors import central, mean_error
from workbench.lenses.seeds import outputs_of
from workbench.params import Param

if TYPE_CHECKING:
    from workbench.datasets import Data

#: Modes with less than this share of the largest variance are left out.
ALIVE = 1e-6

#: How often the noise of one model is dealt anew, for the null band.
DEALT = 200


@dataclass(frozen=True)
class Retention(Lens):
    """How much of the initial noise is left in the output, mode by mode?

    ``correlation`` of start and end over samples, for the modes of the data's covariance (of a
    Gaussian denoiser, of its own), the largest variance first. 1 where the run is a map that keeps
    the mode apart; 0, within the null band, where it is forgotten.
    """

    samples: Annotated[int, Param("how many samples it looks at", ge=8, le=100_000)] = 1000
    modes: Annotated[int, Param("at most how many modes", ge=1, le=4096)] = 64

    reads = ("x", "final", "data")
    bytes_each = 48

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        basis, variances = self._modes(subject)
        start = subject.field("x")[0].flatten(1)
        final = subject.field("final").flatten(1)
        a, b = (_standard(values @ basis) for values in (start, final))
        r = (a * b).mean(0)
        error = mean_error(a * b - r * (a.square() + b.square()) / 2).cpu().numpy()
        about = "correlation of initial noise and output"
        power = {"long_name": "variance of the mode", "units": "x^2"}
        return xr.Dataset(
            estimate("correlation", "mode", r.cpu().numpy(), about, error=error),
            {
                "mode": np.arange(1, len(variances) + 1),
                "variance": ("mode", variances.cpu().numpy(), power),
            },
            {"samples": len(a)},
        )

    def exact(self, subject: Subject) -> xr.Dataset | None:
        process, law = subject.process, subject.denoiser
        if not isinstance(law, Gaussian) or process.spectral or not process.has_prior:
            return None
        program = subject.sampler.program(process, subject.grid)
        if not program.linear:
            return None
        map_ = transfer(program, self._modes(subject)[1])
        kept = map_.gain * float(process.prior_std(subject.grid.t[0]))
        total = (kept.square() + map_.noise).sqrt()
        return xr.Dataset({"correlation": ("mode", (kept / total).cpu().numpy())})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        """Of independent normals."""
        from scipy.special import stdtrit

        free = subject.run.sizes["sample"] - 2
        edge = float(stdtrit(free, 1 - level / 2))
        edge /= math.sqrt(free + edge**2)
        return xr.Dataset({"correlation": ("bound", [-edge, edge])})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        r, high = dataset["correlation"].values, dataset["correlation_null"].values[:, 1]
        forgotten = np.abs(r) <= high
        if forgotten.all():
            return ["The output has forgotten its initial noise in every mode."]
        said = (
            f"The first mode keeps {r[0]:.0%} of its initial noise, the last of {len(r)} keeps "
            f"{r[-1]:.0%}"
        )
        share = forgotten.mean()
        return [f"{said}; {share:.0%} of the modes have forgotten it." if share else f"{said}."]

    @remembered
    def _modes(self, subject: Subject, on_step: OnStep | None) -> tuple[Tensor, Tensor]:
        """Columns (d, k) and variances (k,) of the largest modes that the process leaves apart."""
        check_one_level(subject.process, "take a process with one alpha and sigma")
        law = subject.denoiser
        if not isinstance(law, Gaussian):
            law = Gaussian.fit(subject.data.points.to(law.device, torch.float64))
        twin, basis = law.diagonalised()
        basis, variances = basis.double(), twin.variances.double()
        order = variances.argsort(descending=True)[: self.modes]
        order = order[variances[order] > ALIVE * variances.max()]
        return basis[:, order], variances[order]


@dataclass(frozen=True)
class Reproducibility(Lens):
    """Do two models that never saw the same data make the same sample of the same noise?

    The data are dealt into two halves and a denoiser of the run's kind made of each; of a network,
    those that ship for two halves of its data. Both are run with the run's sampler, grid and seeds.
    ``agreement`` is the correlation of their outputs, about their means and over all samples and
    coordinates; ``cosine`` the mean over samples of the cosine between them. The null band: the
    seeds of one model dealt anew. Two models that both memorise agree far beyond it, too: the noise
    decides what is coarse.
    """

    samples: Annotated[int, Param("how many samples it looks at", ge=8, le=100_000)] = 256
    split: Annotated[int, Param("how the data are dealt into halves", ge=0)] = 0

    reads = ("final", "data")
    bytes_each = 512

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        one, other = self._outputs(subject, on_step)
        cosine, agreement = cosine_similarity(one, other), _agreement(one, other)
        # The influence of a sample on the ratio of sums.
        a, b = one / one.square().sum().sqrt(), other / other.square().sum().sqrt()
        share = (a * b).sum(1) - agreement * (a.square() + b.square()).sum(1) / 2
        about, error = "correlation of the outputs of two models", math.sqrt(len(one)) * share.std()
        variables = estimate("agreement", (), agreement, about, error=error.item())
        about, error = "mean cosine of the outputs of two models", mean_error(cosine)
        variables |= estimate("cosine", (), cosine.mean().item(), about, error=error.item())
        return xr.Dataset(variables)

    def exact(self, subject: Subject) -> xr.Dataset | None:
        """Of Gaussians under a linear sampler whose noise is the seed's."""
        process, halves = subject.process, self._halves(subject)
        if not isinstance(halves[0], Gaussian) or process.spectral or not process.has_prior:
            return None
        program = subject.sampler.program(process, subject.grid)
        if not program.linear or subject.sampler.stochastic:
            return None
        maps = []
        for law in halves:
            twin, basis = law.diagonalised()
            gain = transfer(program, twin.variances).gain
            maps.append((basis.double() * gain) @ basis.double().T)
        return xr.Dataset({"agreement": _agreement(*maps)})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        (one, other), generator = self._outputs(subject), torch.Generator().manual_seed(0)
        dealt = []
        for _ in range(DEALT):
            order = torch.randperm(len(one), generator=generator)
            dealt.append(
                (_agreement(one, other[order]), cosine_similarity(one, other[order]).mean().item())
            )
        bands = zip(("agreement", "cosine"), central(dealt, level), strict=True)
        return xr.Dataset({name: ("bound", band) for name, band in bands})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        cosine, high = float(dataset["cosine"]), float(dataset["cosine_null"].values[1])
        seen = "far beyond" if cosine > 2 * high else "beyond" if cosine > high else "within"
        return [
            f"Models of two halves of the data make samples with a cosine of {cosine:.3f} of the "
            f"same noise, {seen} what other noise gives (up to {high:.3f})."
        ]

    @remembered
    def _halves(self, subject: Subject, on_step: OnStep | None) -> tuple[Denoiser, Denoiser]:
        return halves_of(subject.denoiser, subject.data, self.split)

    @remembered
    def _outputs(self, subject: Subject, on_step: OnStep | None) -> tuple[Tensor, Tensor]:
        """Final states (n, d) of both models, each about its mean."""
        laws = dict(enumerate(self._halves(subject)))
        finals = outputs_of(subject, laws, on_step=on_step)
        return tuple(final - final.mean(0) for final in finals)


def halves_of(
    law: Denoiser, data: Data, split: int = 0, only: object = None
) -> tuple[Denoiser, Denoiser]:
    """Two denoisers of the kind of ``law``, of two halves of the data that have no point in common;
    of a network, those that ship for two halves of its data.

    Args:
        split: how the data are dealt into halves.
        only: the label of the data that are dealt, of what is made of points; None: all of them.

    Raises:
        NotImplementedError: a denoiser that is not made of points alone, too few points, or no
            networks of two halves.
    """
    if isinstance(law, Neural):
        names = [f"{data.name}_{which}_half" for which in ("first", "second")]
        if not set(names) <= set(checkpoints.shipped()):
            raise NotImplementedError(
                f"no networks of two halves of {data.name} ship: {' and '.join(names)}."
            )
        pair = (Neural.from_data(data, checkpoint=name) for name in names)
        return tuple(one.to(law.dtype, law.device) for one in pair)
    if not isinstance(law, Gaussian | Empirical):
        raise NotImplementedError(
            f"{type(law).__name__} is not made of points alone; take Gaussian or Empirical, or "
            "a network that ships."
        )
    points = data.points if only is None else data.points[data.labels == only]
    if len(points) < 4:
        raise NotImplementedError(
            f"{data.name} has {len(points)} points; two halves need 4 or more."
        )
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(split))
    points = points.to(law.device, torch.float64)
    make = Gaussian.fit if isinstance(law, Gaussian) else Empirical
    one, other = order[: len(order) // 2], order[len(order) // 2 :]
    return make(points[one.to(points.device)]), make(points[other.to(points.device)])


def _standard(values: Tensor) -> Tensor:
    values = values - values.mean(0)
    return values / values.square().mean(0).sqrt().clamp_min(1e-300)


def _agreement(one: Tensor, other: Tensor) -> float:
    return ((one * other).sum() / (one.square().sum() * other.square().sum()).sqrt()).item()
