"""What knows the way back: E[x0 | x = alpha x0 + sigma eps]."""

from workbench.denoisers.base import Denoiser
from workbench.denoisers.compose import Conditional, Guided, Perturbed, Spliced
from workbench.denoisers.empirical import Empirical
from workbench.denoisers.gaussian import Gaussian
from workbench.denoisers.mixture import Mixture

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

#: Every denoiser that can be made of a data set, by name. A new one is one class with a
#: ``from_data`` and one entry here.
DENOISERS: dict[str, type[Denoiser]] = {
    "Gaussian": Gaussian,
    "Mixture": Mixture,
    "Empirical": Empirical,
}
