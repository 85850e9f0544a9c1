"""How data becomes noise: alpha, sigma and their derivatives, in closed form."""

from workbench.processes.affine import IRSDE, OUVE, RDDM, Affine, Resfusion
from workbench.processes.base import Coefficients, Process
from workbench.processes.bases import DCT, Basis, Columns, Hartley, power_law
from workbench.processes.rates import VP, SubVP
from workbench.processes.scalar import EDM, OU, VE, Cosine, RectifiedFlow
from workbench.processes.spectral import (
    Blurring,
    EqualSNR,
    HeatDissipation,
    Mode,
    ShortestPath,
    Spectral,
)

__all__ = [
    "AFFINE",
    "DCT",
    "EDM",
    "IRSDE",
    "OU",
    "OUVE",
    "PROCESSES",
    "RDDM",
    "SPECTRAL",
    "VE",
    "VP",
    "Affine",
    "Basis",
    "Blurring",
    "Coefficients",
    "Columns",
    "Cosine",
    "EqualSNR",
    "Hartley",
    "HeatDissipation",
    "Mode",
    "Process",
    "RectifiedFlow",
    "Resfusion",
    "ShortestPath",
    "Spectral",
    "SubVP",
    "power_law",
]

#: Every process that needs nothing but its parameters, by name. A new one is one class and one
#: entry here.
PROCESSES: dict[str, type[Process]] = {
    "VP": VP,
    "SubVP": SubVP,
    "VE": VE,
    "Cosine": Cosine,
    "EDM": EDM,
    "RectifiedFlow": RectifiedFlow,
    "OU": OU,
}

#: Those that also need a condition, which the diffusion is given.
AFFINE: dict[str, type[Affine]] = {
    "OUVE": OUVE,
    "IRSDE": IRSDE,
    "RDDM": RDDM,
    "Resfusion": Resfusion,
}

#: Those that need a basis, and some of them a spectrum.
SPECTRAL: dict[str, type[Spectral]] = {
    "ShortestPath": ShortestPath,
    "HeatDissipation": HeatDissipation,
    "Blurring": Blurring,
    "EqualSNR": EqualSNR,
}
