"""Guidance: a class's denoiser pushed away from the unconditional one."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Annotated, Literal

from torch import Tensor

from workbench.denoisers.base import Denoiser
from workbench.denoisers.compose import Composite
from workbench.denoisers.level import Level, combining
from workbench.params import Param

if TYPE_CHECKING:
    from workbench.denoisers.conditional import Conditional


class Guided(Composite):
    r"""Classifier-free guidance with exact parts: :math:`(1 + w) D_c - w D`.

    Its score is that of :math:`p_c^{1+w} p^{-w}` formed *at each noise level*, which is not the
    noised version of any one law: samples do not follow :math:`p_c^{1+w} p^{-w}` of the data.

    Source: Ho & Salimans 2022, arXiv:2207.12598.
    """

    def __init__(self, whole: Conditional, label: Hashable, weight: float) -> None:
        if not math.isfinite(weight):
            raise ValueError(f"weight was {weight!r}; it must be finite, 0 for no guidance.")
        self.whole, self.label, self.weight = whole, label, float(weight)
        self.part = whole.given(label)
        self._consist_of({"whole": whole})
        caveat = (
            f"Guidance towards {label!r} with weight {weight:g}: at each noise level the score is "
            "that of p_label^(1 + w) p^-w, exactly, but these are not the noised versions of one "
            "law; only at sigma = 0 is it the power of the data's own densities.",
        )
        self.notes = (caveat if weight else ()) + self.notes

    @classmethod
    def from_data(
        cls,
        data,
        label: Annotated[int, Param("the class that is guided towards", ge=0)] = 0,
        weight: Annotated[float, Param("strength w of the guidance; 0 is none")] = 1.0,
        kind: Annotated[
            Literal["Gaussian", "Mixture", "Empirical"], Param("what each class is modelled by")
        ] = "Gaussian",
    ) -> Guided:
        """Guidance towards one label of a labelled data set, see ``Conditional.from_data``."""
        from workbench.denoisers.conditional import Conditional

        return cls(Conditional.from_data(data, kind), label, weight)

    @property
    def mean(self) -> Tensor:
        """What it answers at pure noise, (1 + w) m_c - w m; shape ``event``."""
        return (1 + self.weight) * self.part.mean - self.weight * self.whole.mean

    @property
    def std(self) -> float:
        return self.part.std

    def _level(self, alpha, sigma) -> Level:
        return GuidedLevel(self, alpha, sigma)

    def _changed(self, change: Callable[[Denoiser], Denoiser]) -> Guided:
        return Guided(change(self.whole), self.label, self.weight)

    def __repr__(self) -> str:
        return f"Guided({self.whole!r} towards {self.label!r}, weight {self.weight:g})"


@combining("_denoised", "_score", "_jacobian", "_divergence", "_hessian", "_rate")
class GuidedLevel(Level):
    """Guidance at one noise level: every answer is the combination of those of the parts."""

    def __init__(self, denoiser: Guided, alpha, sigma) -> None:
        super().__init__(denoiser, alpha, sigma)
        self.part, self.whole = (d._level(alpha, sigma) for d in (denoiser.part, denoiser.whole))

    def _answer(self, name: str, *given) -> Tensor:
        towards = getattr(self.part, name)(*given)
        return towards + self.denoiser.weight * (towards - getattr(self.whole, name)(*given))

    def _log_prob(self, x: Tensor) -> Tensor:
        raise NotImplementedError(
            "Guided has no log-density: its score is that of a power of densities whose integral "
            "is not known."
        )

    def _posterior_cov(self, x: Tensor) -> Tensor:
        raise NotImplementedError(
            "a guided score is not that of noised data, so nothing has this posterior covariance."
        )
