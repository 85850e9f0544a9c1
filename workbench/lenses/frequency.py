r"""Frequency: in which order the bands of a picture appear along a run.

A denoised state is first a mean, then an outline, then details. On Gaussian data with variances
:math:`\lambda_j` along the eigenvectors :math:`u_j` it carries in a band b, along the probability
flow and for the states of any process alike, the energy about the mean

.. math:: E_b(D) = \sum_j w_{bj}\frac{\alpha^2\lambda_j^2}{\alpha^2\lambda_j + \sigma^2}
          = \sum_j w_{bj}\frac{\lambda_j^2}{\lambda_j + \rho^2},\qquad w_{bj} = E_b(u_j),

a sum over modes: the square root of a band's mean variance is another number. The share of it that
has emerged is a function of :math:`\rho = \sigma/\alpha` alone. A denoiser whose band has emerged
earlier than that knows more than the covariance: one that remembers a finite set does, below the
noise level at which its points are told apart.

Sources: Wang & Vastola 2023, arXiv:2303.02490; Rissanen, Heinonen & Solin 2022, arXiv:2206.13397;
Yang et al. 2022, arXiv:2211.17106 (the gain of the linear denoiser by frequency); Falck et al.
2025, arXiv:2505.11278 (a process without the hierarchy).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.exact.flow import band_emergence
from workbench.lenses.base import BOUNDS, Lens, OnStep, Subject, estimate
from workbench.lenses.distances import affine_paths
from workbench.lenses.errors import central
from workbench.lenses.teleport import gaussian_of
from workbench.params import Param
from workbench.sampling import bands as kinds
from workbench.sampling.bands import Bands, octave

#: Shares of a band's final energy at which its emergence is told.
FRACTIONS = (0.1, 0.5, 0.9)

#: Share of the mean square of values below which their variance is rounding.
NOTHING = 1e-12

#: Largest states for which the prediction under a process with a noise level per mode is made.
DENSE = 400

Kind = Literal["octaves", "rings", "wavelets"]


# ---- bands ---------------------------------------------------------------------------------------


def merged(labels: list, event: torch.Size) -> tuple[list[str], np.ndarray]:
    """The octaves that rings fall into: their names, and which rings are in each (rings, bands)."""
    if len(event) < 2:
        return [str(label) for label in labels], np.eye(len(labels))
    places = [octave(int(label)) for label in labels]
    names = list(dict.fromkeys(name for _, name in places))
    inside = np.array([[float(name == one) for one in names] for _, name in places])
    return names, inside


def bands_by(
    kind: Kind, event: torch.Size, wavelet: str = "haar"
) -> tuple[Bands, list[str], np.ndarray]:
    """Rings or levels of values, the names of the bands, and which rings or levels are in each.

    Raises:
        ValueError: values that have no such bands.
    """
    bands = kinds.wavelets(event, wavelet) if kind == "wavelets" else kinds.rings(event)
    labels = list(bands.labels)
    if kind == "octaves":
        return bands, *merged(labels, event)
    return bands, [str(label) for label in labels], np.eye(len(labels))


class Energies(NamedTuple):
    """Energies in bands about the mean, (..., time, band) [x²]: of a run, or of the Gaussian law.

    Attributes:
        denoised: of the denoised state.
        state: of the state.
        both: their covariance.
        final: of the data, (band,); None: the denoised state's at the end stands for it.
        alpha: (time, 1).
    """

    denoised: np.ndarray
    state: np.ndarray
    both: np.ndarray
    final: np.ndarray | None = None
    alpha: np.ndarray | None = None

    @property
    def emerged(self) -> np.ndarray:
        final = self.denoised[..., -1:, :] if self.final is None else self.final
        return ratio(self.denoised, final)

    @property
    def coherence(self) -> np.ndarray:
        return ratio(self.both, np.sqrt(self.denoised * self.state))

    @property
    def gain(self) -> np.ndarray:
        return self.alpha * ratio(self.both, self.state)


def modes_of(law: Gaussian) -> tuple[Tensor, Tensor]:
    """Variances (d,) of a law, at least 0, and its modes as columns (d, d)."""
    twin, turn = law.diagonalised()
    return twin.variances.to(turn).clamp_min(0).expand(turn.shape[1]), turn


def weights(law: Gaussian, bands: Bands) -> tuple[Tensor, Tensor]:
    """Variances (d,) of a law, and the energy (bands, d) of each of its modes in each band."""
    variances, turn = modes_of(law)
    return variances.cpu(), bands.energy(turn.T.reshape(-1, *law.event_shape).cpu()).T


def predicted(law: Gaussian, bands: Bands, process, times: np.ndarray) -> Energies:
    """Energies in bands for Gaussian data, in closed form.

    Args:
        times: (time,); the state is alpha x0 + sigma eps there.

    Raises:
        NotImplementedError: a process with a noise level per mode on large states.
    """
    variances, w = weights(law, bands)
    final = (w @ variances).numpy()
    t = torch.as_tensor(times, dtype=torch.float64)
    if not process.spectral:
        c = process(t)
        alpha, sigma = c.alpha[:, None], c.sigma[:, None]
        level = alpha.square() * variances + sigma.square()
        told = torch.where(level > 0, alpha * variances / level, 0.0)  # of the state, by D
        parts = (told.square() * level, level, told * level)
        return Energies(*((part @ w.T).numpy() for part in parts), final)
    if law.dim > DENSE:
        raise NotImplementedError(
            f"the data have {law.dim} numbers; under {process!r} the prediction mixes all modes "
            f"with each other and is made for at most {DENSE}."
        )
    return Energies(*_dense(law, bands, process, t), final)


def _dense(law: Gaussian, bands: Bands, process, times: Tensor) -> tuple[np.ndarray, ...]:
    """The same where each mode of the process has its own alpha and sigma."""
    variances, turn = modes_of(law)
    root = turn * variances.sqrt()
    root = process.to_modes(root.T.reshape(-1, *law.event_shape)).flatten(1).T  # (d, mode)
    cov, found = root @ root.T, ([], [], [])
    for t in times:
        c = process(t)
        alpha, sigma = (v.to(cov).expand(law.event_shape).flatten() for v in (c.alpha, c.sigma))
        level = alpha[:, None] * cov * alpha + torch.diag(sigma.square())
        values, basis = torch.linalg.eigh(level)
        keep = values > 1e-14 * values.max()
        half = basis[:, keep] * values[keep].sqrt()  # level = half half'
        told = (cov * alpha) @ basis[:, keep] / values[keep].sqrt()  # D = told half^-1 (x - m)
        one, other = (process.from_modes(v.T.reshape(-1, *law.event_shape)) for v in (told, half))
        for into, pair in zip(found, ((one, one), (other, other), (one, other)), strict=True):
            into.append(bands.covariance(*pair).sum(0))
    return tuple(torch.stack(parts).numpy() for parts in found)


def crossings(rho: np.ndarray, shares: np.ndarray, fractions=FRACTIONS) -> np.ndarray:
    r"""Where shares first rise to each fraction, going towards the data.

    Args:
        rho: noise levels (time,), decreasing.
        shares: (..., time, band).

    Returns:
        rho (..., band, fraction), by linear interpolation of the log odds over log rho, which is
        exact for a single mode, :math:`1/(1 + \rho^2/\lambda)`; nan for a share that begins above
        the fraction or that crosses it beyond the noise levels that are finite and positive.
    """
    there = np.isfinite(rho) & (rho > 0)
    x, shares = np.log(rho[there]), shares[..., there, :]
    with np.errstate(invalid="ignore"):
        clipped = np.clip(shares, 1e-12, 1 - 1e-12)
        odds = np.log(clipped / (1 - clipped))
    found = []
    for fraction in fractions:
        above = shares >= fraction
        last = above.argmax(-2)
        crosses = above.any(-2) & (last > 0)
        after = np.expand_dims(np.maximum(last, 1), -2)
        low = np.take_along_axis(odds, after - 1, -2).squeeze(-2)
        high = np.take_along_axis(odds, after, -2).squeeze(-2)
        with np.errstate(invalid="ignore", divide="ignore"):
            part = (math.log(fraction / (1 - fraction)) - low) / (high - low)
        after = after.squeeze(-2)
        place = x[after - 1] + np.where(crosses, part, 0.0) * (x[after] - x[after - 1])
        found.append(np.where(crosses, np.exp(place), np.nan))
    return np.stack(found, -1)


def ratio(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """One over the other; nan where the other is not above 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(other > 0, one / np.where(other > 0, other, 1.0), np.nan)


# ---- emergence -----------------------------------------------------------------------------------


class _Sums:
    """What the lens reads: of its class, and of an object with wavelets."""

    def __get__(self, lens: Frequency | None, kind: type) -> tuple[str, ...]:
        how = "wavelets" if lens is not None and lens.bands == "wavelets" else "rings"
        return f"x.{how}", f"denoised.{how}"


@dataclass(frozen=True)
class Frequency(Lens):
    """In which order do the bands of a picture appear, and is it that of the data's variances?

    ``power`` is the energy of the denoised state about the mean of the data, ``emerged`` its share
    of that at the end of the run; ``rho_power`` the noise level at which it passes 10, 50 and 90 %,
    with a bootstrap interval over groups of samples, the same draws for all bands. ``gain`` is the
    share of the (scaled) state that the denoiser passes on, by regression; ``coherence`` the
    correlation of state and denoised state, 1 where a band is only scaled. Beside each stands what
    Gaussian data of the same mean and covariance have, of which the gain is that of the Wiener
    filter; ``lead`` is the logarithm of how much earlier a band is half there than that: above 0
    the denoiser knows more of the data than their covariance.

    Exact on Gaussian data for deterministic linear samplers, from their own gain of each mode.
    """

    bands: Annotated[
        Kind, Param("rings of frequency by octaves or one by one, or levels of the Haar wavelet")
    ] = "octaves"
    draws: Annotated[int, Param("bootstrap draws", ge=50, le=10_000)] = 200

    reads = _Sums()

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 64 * (self.draws + kinds.GROUPS) * kept * dim // 2

    def split(self, event: torch.Size) -> tuple[Bands, list[str], np.ndarray]:
        """As :func:`bands_by`."""
        return bands_by(self.bands, event)

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        names, groups = self._groups(subject)
        total = Energies(*(part.sum(0) for part in groups[:3]), alpha=groups.alpha)
        mean = subject.denoiser.mean.double().square().mean().item()
        if not total.denoised[-1].sum() > NOTHING * mean:
            raise NotImplementedError("all samples are the mean of the data: no band has emerged.")
        rho = subject.run["rho"].values
        when = crossings(rho, total.emerged)
        law = self._prediction(subject)
        drawn = self._drawn(groups)
        whens = None if drawn is None else crossings(rho, drawn.emerged)
        per_band, over = ("time", "band"), ("band", "fraction")
        variables: dict = {}
        for key, of, about, unit in (
            ("power", "denoised", "energy of the denoised state", "x²"),
            ("emerged", "emerged", "share of a band's energy that has emerged", "1"),
            ("coherence", "coherence", "correlation of state and denoised state", "1"),
            ("gain", "gain", "share of the state that is passed on", "1"),
        ):
            value = getattr(total, of)
            error = np.full(value.shape, np.nan) if drawn is None else getattr(drawn, of).std(0)
            variables |= estimate(key, per_band, value, about, unit, error)
            if law is not None:
                text = f"{about}, of Gaussian data"
                variables |= estimate(f"{key}_gaussian", per_band, getattr(law, of), text, unit)
        about = "noise level at which a band passes a share of its end"
        error, interval = _spread(whens, when)
        variables |= estimate("rho_power", over, when, about, "x", error)
        text = f"{about}, 95 % interval"
        variables |= estimate("rho_power_interval", (*over, "bound"), interval, text, "x")
        if law is not None:
            of_law = self._times_of_law(subject, law, rho)
            text = f"{about}, of Gaussian data"
            variables |= estimate("rho_power_gaussian", over, of_law, text, "x")
            lead = np.log(when[:, 1] / of_law[:, 1])
            drawn_lead = None if whens is None else np.log(whens[..., 1] / of_law[:, 1])
            text, error = "log of how much earlier than Gaussian data", _spread(drawn_lead, lead)[0]
            variables |= estimate("lead", "band", lead, text, error=error)
        coords = {"band": names, "fraction": list(FRACTIONS), "bound": list(BOUNDS)}
        coords |= {key: ("time", subject.run[key].values) for key in ("t", "rho")}
        samples = subject.run[self.reads[0]].attrs.get("samples", 0)
        return xr.Dataset(variables, coords, {"samples": samples, "bands": self.bands})

    def exact(self, subject: Subject) -> xr.Dataset | None:
        path = affine_paths(subject)
        if path is None:
            return None
        bands, _, inside = self.split(subject.diffusion.event_shape)
        variances, w = weights(subject.denoiser, bands)
        zero, one = path.cpu().unbind(1)
        _, turn = subject.denoiser.diagonalised()
        alpha, sigma = (
            torch.from_numpy(subject.run[key].values)[:, None] for key in ("alpha", "sigma")
        )
        mean = turn.T.cpu() @ subject.denoiser.mean.flatten().cpu()
        gain, off = one - zero, zero - alpha * mean  # about the mean of the marginal
        level = alpha.square() * variances + sigma.square()
        told = torch.where(level > 0, alpha * variances / level, 0.0)
        # The squares about the mean: of what the starts spread, and of where their mean has gone.
        spread = (told * gain).square() @ w.T
        moved = bands.energy((told * off @ turn.T.cpu()).reshape(-1, *subject.denoiser.event_shape))
        power = (spread + moved).numpy() @ inside
        shares = ratio(power, power[-1:])
        return xr.Dataset(
            {
                "power": (("time", "band"), power),
                "emerged": (("time", "band"), shares),
                "rho_power": (("band", "fraction"), crossings(subject.run["rho"].values, shares)),
            }
        )

    def findings(self, dataset: xr.Dataset) -> list[str]:
        names = dataset["band"].values
        half, error = (dataset[n].sel(fraction=0.5).values for n in ("rho_power", "rho_power_se"))
        told = [
            f"{name} at {value:.3g}" + (f" ± {2 * se:.1g}" if np.isfinite(se) else "")
            for name, value, se in zip(names, half, error, strict=True)
            if np.isfinite(value)
        ]
        if not told:
            return ["No band passes half of its final energy within the run."]
        said = [f"Half of the energy of each band is there at ρ: {', '.join(told[:8])}."]
        if dataset.attrs["samples"] < 2:
            said.append("One sample says nothing of the spread: the intervals are unbounded.")
        if "lead" not in dataset or dataset.attrs["samples"] < 2:
            return said
        lead, se = dataset["lead"].values, dataset["lead_se"].values
        early = [str(name) for name in names[lead - 3 * se > 0.1]]
        if early:
            most = float(np.exp(np.nanmax(lead)))
            said.append(
                f"Earlier than Gaussian data of the same covariance, by up to a factor {most:.2g}: "
                f"{', '.join(early)}. The denoiser knows more of the data than their covariance, "
                "as one that remembers single pictures does."
            )
        else:
            said.append("That is where Gaussian data of the same covariance have it, or later.")
        return said

    # -- numbers ---------------------------------------------------------------------------------

    def _groups(self, subject: Subject) -> tuple[list[str], Energies]:
        """Energies by group of samples, (group, time, band)."""
        state, denoised = (subject.run[name] for name in self.reads)
        try:
            _, names, inside = self.split(subject.diffusion.event_shape)
        except ValueError as error:
            raise NotImplementedError(str(error)) from None

        def of(array: xr.DataArray, part: str) -> np.ndarray:
            value = array.sel(part=part).transpose("group", "time", ...).values
            return value.astype(float) @ inside

        parts = of(denoised, "energy"), of(state, "energy"), of(denoised, "with_state")
        return names, Energies(*parts, alpha=subject.run["alpha"].values[:, None])

    def _drawn(self, groups: Energies) -> Energies | None:
        """Bootstrap draws of the groups; None where there are not two of them."""
        there = np.flatnonzero(groups.state.sum((1, 2)) > 0)
        if len(there) < 2:
            return None
        counts = redraws(len(there), self.draws)
        parts = (np.tensordot(counts, part[there], 1) for part in groups[:3])
        return Energies(*parts, alpha=groups.alpha)

    def _prediction(self, subject: Subject) -> Energies | None:
        bands, _, inside = self.split(subject.diffusion.event_shape)
        try:
            law = gaussian_of(subject)
            found = predicted(law, bands, subject.process, subject.run["t"].values)
        except NotImplementedError:
            return None
        alpha = subject.run["alpha"].values[:, None]
        return Energies(*(part @ inside for part in found[:4]), alpha)

    def _times_of_law(self, subject: Subject, law: Energies, rho: np.ndarray) -> np.ndarray:
        """When the bands of the Gaussian pass each fraction, (band, fraction)."""
        if subject.process.spectral:
            return crossings(rho, law.emerged)
        bands, _, inside = self.split(subject.diffusion.event_shape)
        variances, w = weights(gaussian_of(subject), bands)
        w = torch.from_numpy(inside.T) @ w
        return np.stack([band_emergence(variances, w, f).numpy() for f in FRACTIONS], -1)


def redraws(groups: int, draws: int) -> np.ndarray:
    """How often each of some groups counts in each bootstrap draw, (draws, groups).

    As many draws as groups leave out a part of the spread, which is put back; no group counts less
    than not at all.
    """
    generator = np.random.default_rng(0)
    counts = generator.multinomial(groups, np.full(groups, 1 / groups), size=draws)
    return np.maximum(1 + (counts - 1) * math.sqrt(groups / (groups - 1)), 0.0)


def _spread(drawn: np.ndarray | None, like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviation and 95 % interval over draws; unbounded where there are none.

    A crossing that some draws do not have has no interval either.
    """
    if drawn is None:
        return np.full(like.shape, np.nan), np.full((*like.shape, 2), (0.0, np.inf))
    return drawn.std(0), central(drawn, 0.05)
