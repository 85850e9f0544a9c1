r"""Processes with one alpha and one sigma per mode of a basis:
:math:`c_k(t) = \alpha_k c_k(0) + \sigma_k\epsilon_k`.

Each mode by itself is a scalar process; what sets them apart is one number per mode (a variance, a
frequency). Coefficients have the layout of ``basis.forward``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated

import torch
from torch import Tensor

from workbench.params import Param
from workbench.processes.base import Coefficients, Process
from workbench.processes.bases import Basis

In = Annotated[Basis, Param("the basis in which modes are independent", standard="DCT")]


class Spectral(Process):
    """Base of all spectral processes: a basis, and a scalar process for each of its modes.

    A subclass gives ``own`` (the number that sets a mode apart), ``mode_at`` and
    ``mode_inverse``, which work elementwise.
    """

    basis: Basis

    spectral = True

    @property
    def own(self) -> Tensor:
        """The number that sets each mode apart; float64, of ``event_shape``."""
        raise NotImplementedError

    def mode_at(self, t: Tensor, own: Tensor) -> Coefficients:
        """Coefficients at times ``t`` of modes ``own``; both float64 and of one shape."""
        raise NotImplementedError

    def mode_inverse(self, rho: Tensor, own: Tensor) -> Tensor:
        """The times at which sigma/alpha of modes ``own`` is ``rho``; both of one shape."""
        raise NotImplementedError

    def mode_prior_std(self, t: float, own: Tensor) -> Tensor:
        """Standard deviations from which sampling of modes ``own`` starts at time ``t``."""
        return self.mode_at(torch.full_like(own, t), own).sigma

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.basis, Basis):
            raise TypeError(
                f"{type(self).__name__}: basis was {self.basis!r}; it must be a Basis, such as "
                "DCT((height, width)), Hartley((height, width)) or Columns(matrix, event_shape)."
            )

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one state, and of its coefficients."""
        return self.basis.event_shape

    def at(self, t: Tensor) -> Coefficients:
        own = self.own.to(t.device)
        return self.mode_at(*torch.broadcast_tensors(t.reshape(*t.shape, *(1,) * own.ndim), own))

    def __call__(self, t: float | Tensor) -> Coefficients:
        """Coefficients of every mode at ``t``.

        For a float, float64 tensors of ``event_shape``; for a tensor, tensors of shape
        (*t.shape, *event_shape) in its dtype. They are computed in float64.

        Raises:
            ValueError: a time outside ``[0, t_max]``.
        """
        c = self.at(self._inside("t", t, 0.0, self.t_max))
        kept = isinstance(t, Tensor) and t.dtype.is_floating_point
        return c.map(lambda value: value.to(t.dtype)) if kept else c

    def time_of(self, rho: float | Tensor) -> float | Tensor:
        """Not defined: there is one rho per mode. ``mode(index).time_of(rho)`` is."""
        raise NotImplementedError(
            f"{self!r} has one rho per mode, so no time belongs to a rho. Ask one mode, "
            "process.mode(index).time_of(rho), or make the grid in t: Grid.uniform, "
            "Grid.quadratic or Grid.times."
        )

    inverse = time_of

    def prior_std(self, t: float) -> Tensor:
        """Standard deviation of each mode from which sampling starts at ``t``; event_shape."""
        self._inside("t", t, 0.0, self.t_max)
        return self.mode_prior_std(float(t), self.own)

    def to_modes(self, x: Tensor) -> Tensor:
        return self.basis.forward(x)

    def from_modes(self, u: Tensor) -> Tensor:
        return self.basis.inverse(u)

    def core(self, law):
        return law.transformed(self.basis.matrix)

    def off_core(self, law):
        return law.transformed(self.basis.matrix.T)

    def turned(self, matrices: Tensor) -> Tensor:
        matrix = self.basis.matrix.to(matrices)
        return matrix @ matrices @ matrix.T

    def mode(self, index: int | tuple[int, ...]) -> Mode:
        """The scalar process of one mode, by its place in the event (a number: flattened)."""
        own = self.own if isinstance(index, tuple) else self.own.flatten()
        try:
            value = own[index]
        except IndexError:
            value = own
        if value.ndim:
            raise IndexError(
                f"index was {index!r}; it must be the place of one mode in "
                f"{tuple(self.event_shape)}: one number per axis, or one for the flattened event."
            )
        return Mode(self, value.item())

    def distinct(self) -> tuple[list[Mode], Tensor]:
        """The distinct scalar processes, and which of them each mode has (int64, event_shape)."""
        values, index = torch.unique(self.own, return_inverse=True)
        return [Mode(self, value) for value in values.tolist()], index

    def __repr__(self) -> str:
        parts = []
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                low, high = value.min().item(), value.max().item()
                value = f"{value.numel()} values from {low:.3g} to {high:.3g}"
            elif isinstance(value, float) and value == entry.default:
                continue
            parts.append(f"{entry.name}={value}")
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True)
class Mode(Process):
    """One mode of a spectral process as a scalar process.

    Attributes:
        family: the spectral process.
        own: the number that sets this mode apart (see the family).
    """

    family: Spectral = field(repr=False)
    own: float

    @property
    def t_min(self) -> float:
        return self.family.t_min

    @property
    def t_max(self) -> float:
        return self.family.t_max

    @property
    def has_prior(self) -> bool:
        return self.family.has_prior

    def at(self, t: Tensor) -> Coefficients:
        return self.family.mode_at(t, torch.full_like(t, self.own))

    def inverse(self, rho: Tensor) -> Tensor:
        return self.family.mode_inverse(rho, torch.full_like(rho, self.own))

    def prior_std(self, t: float) -> float:
        own = torch.tensor(self.own, dtype=torch.float64)
        return self.family.mode_prior_std(float(t), own).item()

    def __repr__(self) -> str:
        return f"mode {self.own:.6g} of {self.family!r}"
