"""Denoisers: the posterior mean E[x0 | x = alpha x0 + sigma eps]."""

from workbench.denoisers.base import Denoiser
from workbench.denoisers.compose import Spliced
from workbench.denoisers.conditional import Conditional, Guided
from workbench.denoisers.empirical import Empirical
from workbench.denoisers.gaussian import Gaussian
from workbench.denoisers.level import Level
from workbench.denoisers.local import Local
from workbench.denoisers.mixture import Mixture
from workbench.denoisers.neural import Neural
from workbench.denoisers.perturbed import Perturbed
from workbench.denoisers.sphere import Sphere
from workbench.registry import View, register

for _kind in (
    Gaussian,
    Mixture,
    Empirical,
    Conditional,
    Guided,
    Local,
    Neural,
    Perturbed,
    Spliced,
):
    register(_kind)

#: Every denoiser that can be made of a data set, by name.
DENOISERS = View("denoiser")
