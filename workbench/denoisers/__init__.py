"""What knows the way back: E[x0 | x = alpha x0 + sigma eps]."""

from workbench.denoisers.base import Denoiser
from workbench.denoisers.compose import Conditional, Guided, Perturbed, Spliced
from workbench.denoisers.empirical import Empirical
from workbench.denoisers.gaussian import Gaussian
from workbench.denoisers.mixture import Mixture
from workbench.registry import View, register

__all__ = [
    "DENOISERS",
    "Conditional",
    "Denoiser",
    "Empirical",
    "Gaussian",
    "Guided",
    "Mixture",
    "Perturbed",
    "Spliced",
]

for _kind in (Gaussian, Mixture, Empirical, Conditional, Guided, Perturbed, Spliced):
    register(_kind)

#: Every denoiser that can be made of a data set, by name.
DENOISERS = View("denoiser")
