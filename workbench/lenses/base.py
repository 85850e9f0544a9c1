"""What a study can have measured of its run, or of its diffusion alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import xarray as xr

from workbench.diffusion import Diffusion
from workbench.params import Parameterised
from workbench.sampling import Grid, Sampler

__all__ = ["Lens", "OnStep", "Subject"]

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Subject:
    """What a lens looks at: a run, and the objects that it came from.

    Attributes:
        diffusion: in float64.
        sampler, grid: of the run.
        run: the trajectory's dataset, of its first samples, as many as the lens asks for, with the
            fields that it reads.
    """

    diffusion: Diffusion
    sampler: Sampler
    grid: Grid
    run: xr.Dataset


class Lens(Parameterised, ABC):
    """A measurement; a subclass is a frozen dataclass of declared parameters.

    Attributes:
        reads: recorded fields that it needs.
        looks_at: how many samples it looks at; 0 for one that is of the diffusion alone.
    """

    registry_kind: ClassVar[str] = "lens"
    reads: ClassVar[tuple[str, ...]] = ()

    @property
    def looks_at(self) -> int:
        return getattr(self, "samples", 0)

    def memory(self, dim: int, kept: int) -> int:
        """About what it takes at most [bytes], of states with ``dim`` numbers at ``kept`` nodes.

        A covariance and its eigenvectors, unless a lens says otherwise.
        """
        return 48 * dim * dim

    @abstractmethod
    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        """The measurement: numbers, along ``time`` of the run and along dims of its own.

        Args:
            on_step: called as ``on_step(done, total)`` along the way; raise in it to stop.

        Raises:
            NotImplementedError: it does not exist for this subject, with the reason.
        """
