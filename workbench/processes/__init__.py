"""How data becomes noise: alpha, sigma and their derivatives, in closed form."""

from workbench.processes.affine import IRSDE, OUVE, RDDM, Affine, Resfusion
from workbench.processes.base import Coefficients, Process
from workbench.processes.bases import DCT, Basis, Columns, Hartley, power_law
from workbench.processes.scalar import EDM, OU, VE, VP, Cosine, RectifiedFlow, SubVP
from workbench.processes.spectral import (
    Blurring,
    EqualSNR,
    HeatDissipation,
    Mode,
    ShortestPath,
    Spectral,
)
from workbench.registry import View

#: Every process that needs nothing but its parameters, by name.
PROCESSES = View("process", only=lambda one: not issubclass(one.target, Affine | Spectral))

#: Those that also need a condition, which the diffusion is given.
AFFINE = View("process", only=lambda one: issubclass(one.target, Affine))

#: Those that need a basis, and some of them a spectrum.
SPECTRAL = View("process", only=lambda one: issubclass(one.target, Spectral))
