"""A study band by band: its run with the emergence of each band, sample by sample, and pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import numpy as np

from workbench.lenses.base import Subject, complete
from workbench.lenses.frequency import Frequency, Kind, crossings
from workbench.params import Param
from workbench.sampling import Record
from workbench.studies.explore import MOST_NUMBERS
from workbench.studies.limits import Report, claim, unheard
from workbench.studies.options import Options
from workbench.studies.run import build, plan, sampled
from workbench.studies.sections import StudyError

if TYPE_CHECKING:
    import torch
    import xarray

    from workbench.studies.spec import Study

#: Pictures that are shown in each band, numbers that those of all bands and times may hold, and
#: most times of the heat map.
PICTURES, PASSED, TIMES = 6, 6_000_000, 60


@dataclass(frozen=True)
class Looking(Options):
    """Which bands the page looks at."""

    bands: Annotated[
        Kind, Param("rings of frequency by octaves or one by one, or levels of the Haar wavelet")
    ] = "octaves"


@dataclass(frozen=True)
class Banded:
    """What :func:`banded` leaves.

    Attributes:
        study: as it was run.
        run: its dataset.
        lens: of :class:`workbench.lenses.frequency.Frequency`.
        said: its findings.
        own: noise level at which half of a sample's own energy is there, (sample, band).
        final: final states, (sample, rows, columns), the mean over channels; None of no images.
        times: nodes that are drawn.
        denoised: of the first samples, about the mean of the data, (time, sample, rows, columns).
        passed: the part of it in each band, (time, sample, band, rows, columns).
        mean: of the data.
    """

    study: Study
    run: xarray.Dataset
    lens: xarray.Dataset
    said: list[str]
    own: np.ndarray
    times: np.ndarray
    final: np.ndarray | None = None
    denoised: np.ndarray | None = None
    passed: np.ndarray | None = None
    mean: np.ndarray | None = None


def banded(study: Study, options: Looking, report: Report = unheard) -> Banded:
    """Run a study and look at its bands.

    Raises:
        StudyError: values that do not go together, or more numbers than can be looked at.
        NotImplementedError: data without such bands, with the reason.
    """
    report("preparing", 0.0)
    lens = Frequency(bands=options.bands)
    setup = build(study)
    event = setup.diffusion.event_shape
    try:
        bands, _, inside = lens.split(event)
    except ValueError as error:
        raise StudyError({"bands": f"bands was {options.bands}: {error}"}) from None
    setup = replace(setup, record=Record(["denoised", *lens.reads]), lenses={"frequency": lens})
    kept = len(setup.record.indices(setup.grid))
    numbers = kept * study.seeds.count * setup.diffusion.denoiser.dim
    if numbers > MOST_NUMBERS:
        most = study.seeds.count * MOST_NUMBERS // numbers
        raise StudyError(
            {
                "seeds.count": f"seeds.count was {study.seeds.count}; with {kept} times of such "
                f"pictures it must be at most {most} here. Larger runs: the lens frequency of a "
                "study, which keeps no pictures."
            }
        )
    made = plan(setup)
    claim(made.bytes_held + made.bytes_stored, study.seeds.count, made.bytes_fixed)
    trajectory = sampled(setup, made, lambda i, n: report("sampling", 0.7 * i / n))
    run = trajectory.dataset
    report("measuring", 0.7)
    subject = Subject(setup.truth, setup.sampler, setup.grid, run, setup.data)
    found = complete(lens, subject)
    mean = setup.truth.denoiser.mean.cpu()
    denoised = trajectory["denoised"].cpu().double() - mean
    flat = denoised.reshape(-1, *event)
    energy = (bands.energy(flat).numpy() @ inside).reshape(kept, -1, inside.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.moveaxis(energy / energy[-1:], 1, 0)  # (sample, time, band)
    own = crossings(run["rho"].values, np.nan_to_num(shares))[..., 1]
    rho = run["rho"].values
    times = np.flatnonzero(np.isfinite(rho) & (rho > 0))
    times = times[np.unique(np.linspace(0, len(times) - 1, TIMES).round().astype(int))]
    said = lens.findings(found)
    plain = Banded(study, run, found, said, own, times)
    if len(event) < 2:
        return plain
    report("band by band", 0.8)
    size, names = math.prod(event[-2:]), found.sizes["band"]
    count = max(1, min(PICTURES, len(trajectory.final), PASSED // (len(times) * names * size)))
    some = denoised[times.tolist(), :count]
    parts = bands.passed(some.reshape(-1, *event))
    passed = parts.new_tensor(inside.T) @ parts.flatten(1)  # those of each group of bands together
    grey = passed.reshape(names, len(times), count, -1, *event[-2:]).mean(3)
    return replace(
        plain,
        final=_grey(trajectory.final.cpu().double(), event),
        denoised=_grey(some.reshape(-1, *event), event).reshape(len(times), count, *event[-2:]),
        passed=grey.permute(1, 2, 0, 3, 4).numpy(),
        mean=_grey(mean[None], event)[0],
    )


def _grey(images: torch.Tensor, event: torch.Size) -> np.ndarray:
    """Images (n, *event) as (n, rows, columns)."""
    return images.reshape(len(images), -1, *event[-2:]).mean(1).numpy()
