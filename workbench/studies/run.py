"""A study carried out: the objects it names, and the labelled arrays it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workbench.datasets import Data
from workbench.diffusion import Diffusion
from workbench.sampling import Grid, Record, Sampler
from workbench.studies.spec import SECTIONS, Study, StudyError
from workbench.trajectory import Trajectory, sample

if TYPE_CHECKING:
    import xarray

__all__ = ["Setup", "available_devices", "build", "run"]


@dataclass(frozen=True)
class Setup:
    """The objects a study names, in the study's precision and on its device."""

    study: Study
    data: Data
    diffusion: Diffusion
    sampler: Sampler
    grid: Grid
    seeds: range
    record: Record

    def sample(self, on_step: Callable[[int, int], None] | None = None) -> Trajectory:
        """Run the sampler as the study says."""
        return sample(
            self.diffusion, self.sampler, self.grid, self.seeds, self.record, on_step=on_step
        )


def build(study: Study) -> Setup:
    """The objects that ``study`` names.

    Raises:
        StudyError: values that are each allowed but do not go together.
    """
    made = {}
    for section in ("data", "denoiser", "process", "sampler", "grid"):
        choice = getattr(study, section)
        options = choice.model_dump(exclude={"name"})
        first = {"denoiser": [made.get("data")], "grid": [made.get("process")]}.get(section, [])
        try:
            made[section] = SECTIONS[section][choice.name](*first, **options)
        except (ValueError, NotImplementedError) as error:
            raise StudyError({section: f"{section}: {error}"}) from None
    denoiser = made["denoiser"].to(getattr(torch, study.dtype), _device(study.device))
    try:
        record = Record(study.record.fields, study.record.every)
    except ValueError as error:
        raise StudyError({"record": str(error)}) from None
    first = study.seeds.first
    return Setup(
        study=study,
        data=made["data"],
        diffusion=Diffusion(made["process"], denoiser),
        sampler=made["sampler"],
        grid=made["grid"],
        seeds=range(first, first + study.seeds.count),
        record=record,
    )


def run(study: Study, on_step: Callable[[int, int], None] | None = None) -> xarray.Dataset:
    """Carry out ``study``: dims (time, sample, *event), see :class:`workbench.Trajectory`.

    ``attrs["study"]`` holds the study as JSON, so that a stored result can be run again.
    """
    dataset = build(study).sample(on_step).dataset
    dataset.attrs["study"] = study.to_json()
    return dataset


def available_devices() -> tuple[str, ...]:
    """The values of ``device`` that this machine can serve."""
    there = {
        "auto": True,
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    return tuple(name for name, available in there.items() if available)


def _device(name: str) -> torch.device:
    available = available_devices()
    if name == "auto":
        return torch.device("cuda" if "cuda" in available else "cpu")
    if name not in available:
        raise StudyError(
            {"device": f"device was {name!r}; on this machine it may be {', '.join(available)}."}
        )
    return torch.device(name)
