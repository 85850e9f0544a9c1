"""The gap between ODE and SDE of a study: what the page "Gap" and its notebook show.

The study says data, denoiser and process; the options how much noise the SDE has, which error is
made on purpose, and how heavily the network's Fokker-Planck residual was penalised in training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Perturbed, checkpoints
from workbench.denoisers.neural import MATCHING
from workbench.diffusion import Diffusion
from workbench.exact import w2
from workbench.exact.fokker_planck import score_residual
from workbench.exact.gap import gradient_law
from workbench.exact.reverse import reverse_law
from workbench.lenses.attribution import Attribution
from workbench.lenses.base import Subject, complete
from workbench.lenses.bound import Bound
from workbench.lenses.gap import (
    PAIRS,
    Family,
    Gap,
    _mean_squares,
    _weighted,
    ends_key,
    residual_map,
    truth_samples,
)
from workbench.lenses.teleport import matched_gaussian
from workbench.params import Param
from workbench.processes import DCT
from workbench.sampling import Grid, NoiseSource, Record
from workbench.studies.limits import Report, claim, unheard
from workbench.studies.options import Options
from workbench.studies.penalties import penalties, trend
from workbench.studies.run import build
from workbench.studies.spec import Study, StudyError
from workbench.trajectory import prior_states, sample

#: Weights of the penalty that networks ship with, by their words.
WEIGHTS = ("matching", "0", "0.1", "1", "10")

#: Of a plane: samples, steps, levels that are drawn, rows of the map. Of images: the same.
PLANE = {"samples": 256, "steps": 48, "levels": 25, "rows": 33}
NETWORK = {"samples": 256, "steps": 48, "levels": 17, "rows": 25}
IMAGE = {"samples": 80, "steps": 16, "levels": 7, "rows": 0}

#: Samples of images whose residual is taken, and random directions for its trace.
LOOKED_AT, PROBES = 24, 4

#: Sizes of the error for which its consequence is drawn, and the largest.
SIZES, LARGEST = 41, 0.5


@dataclass(frozen=True)
class Gapping(Options):
    """What is asked of the gap beside the study."""

    eta: Annotated[
        float, Param("noise of the SDE: near 0 the flow, 1 the reverse SDE", ge=0.01, le=4)
    ] = 1.0
    error: Annotated[
        Literal["none", "scale", "bias", "gradient", "gauge"],
        Param("an error made in the score on purpose", label="deliberate error"),
    ] = "none"
    size: Annotated[
        float,
        Param("of the error, relative to the score (at the noisiest level)", ge=-0.5, le=0.5),
    ] = 0.05
    weight: Annotated[
        Literal["matching", "0", "0.1", "1", "10"],
        Param(
            "networks only: weight of the Fokker-Planck penalty it was trained with",
            label="penalty's weight",
        ),
    ] = "matching"

    def wanted(self) -> tuple[str, ...]:
        return tuple(key for key in self.keys() if key != "size" or self.error != "none")


@dataclass(frozen=True)
class Seen:
    """What :func:`gap_of` leaves.

    Attributes:
        dataset: curves, maps and states; see there.
        facts: the result in sentences.
        gap, bound, attribution: of the lenses; the bound and the attribution may be None.
        penalties: of a network, what is known of those with other weights of the penalty; or None.
    """

    dataset: xr.Dataset
    facts: list[str]
    gap: xr.Dataset
    bound: xr.Dataset | None
    attribution: xr.Dataset | None
    penalties: xr.Dataset | None = None


def weighted(study: Study, weight: str) -> Study:
    """The study with the network that was trained with that weight of the penalty.

    Raises:
        StudyError: no such network ships, with those that do.
    """
    if weight == "matching":
        return study
    if study.denoiser.name != "Neural":
        raise StudyError(
            {
                "weight": f"weight was {weight}, and {study.denoiser.name} is no network: take the "
                "denoiser Neural, or the weight matching."
            }
        )
    name = study.data.name if weight == "0" else f"{study.data.name}_fokker_planck_{weight}"
    there = checkpoints.shipped()
    if name not in there:
        known = ", ".join(sorted(one for one in there if one.startswith(study.data.name)))
        raise StudyError(
            {
                "weight": f"weight was {weight}, and no network {name} ships; for these data there "
                f"are {known or 'none'}."
            }
        )
    return study.changed({"denoiser.checkpoint": name})


def network_of(study: Study) -> float | None:
    """The weight of the penalty of the network that ships for these data; None of any other."""
    asked = study.denoiser.parameters
    if study.denoiser.name != "Neural" or asked["file"] is not None:
        return None
    name = asked["checkpoint"]
    if name in (MATCHING, study.data.name):
        return 0.0
    first, _, weight = name.partition("_fokker_planck_")
    return float(weight) if first == study.data.name and weight else None


def perturbed(diffusion: Diffusion, error: str, size: float) -> Diffusion:
    r"""The diffusion with an error in its score of the given relative size.

    A scale and a gauge are relative to the score everywhere. A bias and a gradient part are
    constant in :math:`y = x/\alpha`, so relative to the score at the noisiest level, where it is
    smallest: the bias is :math:`size/\rho_T` along the first coordinate, the gradient
    :math:`size/\rho_T^2`.
    """
    if error == "none" or size == 0:
        return diffusion
    law, top = diffusion.denoiser, _top(diffusion.process)
    if error == "scale":
        law = Perturbed(law, scale=size)
    elif error == "bias":
        bias = torch.zeros(law.event_shape).to(law.mean)
        bias.view(-1)[0] = size / top
        law = Perturbed(law, bias=bias)
    elif error == "gradient":
        law = Perturbed(law, gradient=size / top**2)
    else:
        matrix = torch.zeros(law.dim, law.dim).to(law.mean)
        matrix[0, 1], matrix[1, 0] = -size, size
        law = Perturbed(law, gauge=matrix)
    return Diffusion(diffusion.process, law, diffusion.condition)


def _top(process) -> float:
    """The noise level that sampling starts from; of pure noise, a thousand."""
    rho = float(torch.as_tensor(process(process.t_max).rho).max())
    return min(rho, 1e3)


def consequence(diffusion: Diffusion, error: str, eta: float, grid: Grid) -> xr.Dataset | None:
    """What an error does to Gaussian data, in closed form: W2 of each pair over its size.

    Of data that are not Gaussian, to the Gaussian with their mean and covariance. None where there
    is no error, or no closed form.
    """
    if error == "none" or diffusion.process.spectral or diffusion.condition is not None:
        return None
    law = matched_gaussian(diffusion.denoiser)
    right = Diffusion(diffusion.process, law)
    sizes = np.linspace(-LARGEST, LARGEST, SIZES)
    start, end, top = grid.t[0], grid.t[-1], _top(diffusion.process)
    truth, values = right.marginal(end), []
    for size in sizes.tolist():
        laws, scale, bias = {"truth": truth}, size if error == "scale" else 0.0, None
        if error == "bias":
            bias = torch.zeros(law.event_shape, dtype=torch.float64)
            bias.view(-1)[0] = size / top
        for name, one in (("ODE", 0.0), ("SDE", eta)):
            if error == "gradient":
                laws[name] = gradient_law(right, one, size / top**2, start, end)
            else:
                laws[name] = reverse_law(right, one, scale, bias, t=start, s=end)
        values.append([w2(laws[a], laws[b]) for a, b in PAIRS])
    about = {"long_name": "W2 in closed form, on the Gaussian with these moments", "units": "x"}
    labels = [f"{a} and {b}" for a, b in PAIRS]
    coords = {"size": sizes, "pair": labels}
    return xr.Dataset({"w2": (("size", "pair"), np.array(values), about)}, coords)


def gap_of(asked: tuple[Study, Gapping], report: Report = unheard) -> Seen:
    """ODE and SDE of a study from the same noise beside the truth, and how far they are apart.

    Returns:
        Of the dataset: ``ode``, ``sde``, ``truth`` (level, sample, *event), states over
        :math:`\\sqrt{\\alpha^2 + \\sigma^2/v}`; ``residual`` (level) with ``residual_se``, in units
        of the noise prediction, and ``pointwise`` of each sample of both (sampler, level, sample);
        of a plane ``map`` (level, row, column) at the places ``place``; of images ``spectrum``
        (level, radial), the residual by radial frequency; ``consequence.w2`` (size, pair).

    Raises:
        StudyError: what cannot be.
    """
    study, options = asked
    report("preparing", 0.0)
    study = weighted(study, options.weight)
    setup = build(study.changed({"device": "cpu"} if study.device == "mps" else {}))
    diffusion = setup.truth
    planar = tuple(diffusion.event_shape) == (2,)
    network = not diffusion.core.closed
    about = (NETWORK if network else PLANE) if planar else IMAGE
    n, dim = about["samples"], diffusion.denoiser.dim
    claim(about["steps"] * n * dim * 64, n, 16 * dim * dim)
    if diffusion.process.spectral or not diffusion.process.has_prior:
        raise StudyError(
            {
                "process": f"process was {study.process.name}; ODE and SDE are compared under "
                "processes with one noise level and a prior, such as VP, EDM, OU."
            }
        )
    if options.error == "gauge" and dim < 2:
        raise StudyError({"error": "error was gauge; a gauge turns at least two dimensions."})
    if network:  # in its own precision, for speed
        diffusion = diffusion.to(torch.float32)
    right = diffusion
    try:
        diffusion = perturbed(right, options.error, options.size)
        return _seen(study, options, setup, diffusion, right, about, report)
    except NotImplementedError as error:
        raise StudyError({"": str(error)}) from None


def _seen(study, options, setup, diffusion, right, about, report: Report) -> Seen:
    planar, n = bool(about["rows"]), about["samples"]
    grid = Grid.log_snr(diffusion.process, about["steps"], final="stop")
    first = 1 if grid.alpha[0] == 0 else 0
    if first and diffusion is not right:
        grid = Grid.times(diffusion.process, grid.t[1:])
        first = 0
    nodes = np.unique(np.linspace(first, grid.steps, about["levels"]).round().astype(int))
    subject = Subject(diffusion, data=setup.data)
    runs, seeds = {}, range(n, 2 * n)  # of the SDE that is measured; its ODE has others
    z = NoiseSource(seeds, diffusion.event_shape).start().to(diffusion.device, diffusion.dtype)
    start = diffusion.from_core(prior_states(diffusion, grid.t[0], z), grid.t[0])
    for i, (name, eta) in enumerate((("ode", 0.0), ("sde", options.eta))):
        report("ODE" if i == 0 else "SDE", 0.1 * i)
        runs[name] = sample(
            diffusion, Family(eta=eta), grid, seeds, Record(["x"]), start, noise="brownian"
        )
        subject.computed[ends_key(eta, grid, seeds)] = runs[name].final
    report("truth", 0.2)
    states = {name: run["x"][nodes.tolist()] for name, run in runs.items()}
    exact = replace(subject, diffusion=diffusion.to(torch.float64), computed={})
    states["truth"] = torch.stack([truth_samples(exact, grid.t[k], n) for k in nodes])
    variance = max(float(setup.data.points.double().var(0).mean()), 1e-12)
    alpha, sigma = np.array(grid.alpha)[nodes], np.array(grid.sigma)[nodes]
    scale = np.sqrt(alpha**2 + sigma**2 / variance)
    coords: dict[str, Any] = {"rho": ("level", sigma / alpha)}
    coords["t"] = ("level", np.array(grid.t)[nodes])
    event = ("dim",) if planar else ("row", "column") if states["ode"].ndim == 4 else ("pixel",)
    variables: dict[str, Any] = {}
    for name, x in states.items():
        x = x.double().cpu().numpy()
        if not planar and len(event) == 1:
            x = x.reshape(*x.shape[:2], -1)
        drawn = x / scale.reshape(-1, *[1] * (x.ndim - 1))
        variables[name] = (("level", "sample", *event), drawn.astype(np.float32))
    residual = _residuals(diffusion, grid, nodes, states, planar, report)
    if planar:
        window = 1.15 * max(float(np.quantile(np.abs(variables[k][1]), 0.995)) for k in states)
        place = np.linspace(-window, window, about["rows"])
        lattice = np.stack(np.meshgrid(place, place, indexing="xy"), -1).reshape(-1, 2)
        maps, how = [], "none" if diffusion.core.closed else "time"
        for i, k in enumerate(nodes):
            points = torch.from_numpy(lattice * scale[i]).to(diffusion.device, diffusion.dtype)
            shown = residual_map(diffusion, grid.t[k], points, how)
            maps.append(shown.reshape(len(place), -1).cpu().numpy())
            report("map", 0.4 + 0.15 * i / len(nodes))
        text = {"long_name": "Fokker-Planck residual of the noise prediction", "units": "1"}
        variables["map"] = (("level", "y", "x"), np.array(maps), text)
        coords["place"] = ("x", place)
    report("distances", 0.55)
    dataset = xr.Dataset(variables | residual, coords)
    gap = complete(
        Gap(samples=n, steps=about["steps"], eta=options.eta),
        subject,
        on_step=lambda i, m: report("distances", 0.55 + 0.2 * i / m),
    )
    attribution = complete(
        Attribution(samples=n, steps=about["steps"] // 2, levels=5 if planar else 2),
        subject,
        on_step=lambda i, m: report("attribution", 0.75 + 0.12 * i / m),
    )
    bound = None
    if planar and options.eta == 1:
        report("bound", 0.88)
        bound = complete(Bound(samples=64, steps=24), subject)
    drawn = consequence(right, options.error, options.eta, grid)
    if drawn is not None:
        dataset = dataset.assign({"consequence": drawn["w2"]})
    others = penalties(study.data.name) if network_of(study) is not None else None
    facts = _facts(options, gap, attribution, bound, dataset)
    if others is not None:
        facts.insert(0 if options.weight != "matching" else len(facts), trend(others))
    dataset.attrs = {"kind": "plane" if planar else "image", "error": options.error}
    dataset.attrs |= {"size": options.size, "eta": options.eta, "study": study.to_yaml()}
    dataset.attrs["weight"] = network_of(study)
    return Seen(dataset, facts, gap, bound, attribution, others)


def _residuals(diffusion: Diffusion, grid: Grid, nodes, states, planar: bool, report: Report):
    """The residual at each level: over the ODE's and the SDE's states, and by frequency."""
    event = diffusion.event_shape
    exact = planar or diffusion.core.closed
    probes = None
    if not exact:
        generator = torch.Generator().manual_seed(0)
        probes = torch.randint(0, 2, (PROBES, *event), generator=generator) * 2.0 - 1.0
        probes = probes.to(diffusion.device, diffusion.dtype)
    how = "none" if diffusion.core.closed else "time"
    means, errors, each, spectra = [], [], [], []
    basis = DCT(tuple(event[-2:])) if len(event) >= 2 else None
    for i, k in enumerate(nodes):
        t, rows = grid.t[k], []
        for name in ("ode", "sde") if exact else ("sde",):
            x = states[name][i].to(diffusion.dtype)
            x = x if exact else x[:LOOKED_AT]
            found = score_residual(diffusion, x, t, probes, how)
            square = _mean_squares(diffusion, found, t)["residual"].double()
            rows.append(square)
            if name == "sde" and basis is not None:
                shown = _weighted(diffusion, found.residual, t).double().cpu()
                spectra.append(_by_frequency(basis, shown))
        mean = square.mean().clamp_min(0).item()
        means.append(mean**0.5)
        error = square.std().item() / len(square) ** 0.5
        errors.append(error / (2 * mean**0.5) if mean > error > 0 else np.nan)
        each.append(rows)
        report("residual", 0.25 + 0.15 * i / len(nodes))
    about = {"long_name": "Fokker-Planck residual of the noise prediction", "units": "1"}
    found = {
        "residual": ("level", np.array(means), about),
        "residual_se": ("level", np.array(errors), {"units": "1"}),
    }
    if exact:
        both = np.array([[row.clamp_min(0).sqrt().cpu().numpy() for row in rows] for rows in each])
        found["pointwise"] = (("sampler", "level", "sample"), np.swapaxes(both, 0, 1), about)
    if spectra:
        found["spectrum"] = (("level", "radial"), np.array(spectra), about)
    return found


def _by_frequency(basis: DCT, field: Tensor) -> np.ndarray:
    """Root mean square of images' coefficients at each whole radial frequency."""
    square = basis.forward(field.reshape(-1, *basis.event_shape)).square().mean(0)
    rows, columns = np.meshgrid(*map(np.arange, basis.event_shape), indexing="ij")
    radial = np.hypot(rows, columns).round().astype(int)
    return np.array([float(square[radial == k].mean()) ** 0.5 for k in range(radial.max() + 1)])


def _facts(options: Gapping, gap, attribution, bound, dataset: xr.Dataset) -> list[str]:
    said = [Gap(eta=options.eta).findings(gap)[0].rstrip(".")]
    if bound is not None:
        said.append(f"at most {float(bound['limit']):.3g} by the residual")
    worst = int(np.nanargmax(dataset["residual"].values))
    said.append(
        f"residual up to {float(dataset['residual'][worst]):.2g} at ρ = "
        f"{float(dataset['rho'][worst]):.2g}"
    )
    if options.error == "gauge":
        said.append("a gauge moves no density in continuous time")
    return said
