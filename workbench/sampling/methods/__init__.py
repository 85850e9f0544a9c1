"""How we walk back: one file per family of methods."""

from workbench.sampling.methods.base import Sampler
from workbench.sampling.methods.dpm import DPMSolver, DPMSolverPP
from workbench.sampling.methods.exponential import DDIM
from workbench.sampling.methods.multistep import DEIS, IPNDM, UniPC
from workbench.sampling.methods.runge_kutta import RK4, Euler, Heun, Midpoint
from workbench.sampling.methods.stochastic import EDMStochastic, EulerMaruyama, ExponentialSDE

__all__ = [
    "DDIM",
    "DEIS",
    "IPNDM",
    "RK4",
    "SAMPLERS",
    "DPMSolver",
    "DPMSolverPP",
    "EDMStochastic",
    "Euler",
    "EulerMaruyama",
    "ExponentialSDE",
    "Heun",
    "Midpoint",
    "Sampler",
    "UniPC",
]

#: Every sampler by name. A new one is one class and one entry here.
SAMPLERS: dict[str, type[Sampler]] = {
    "Euler": Euler,
    "Heun": Heun,
    "Midpoint": Midpoint,
    "RK4": RK4,
    "DDIM": DDIM,
    "DPMSolver": DPMSolver,
    "DPMSolverPP": DPMSolverPP,
    "UniPC": UniPC,
    "DEIS": DEIS,
    "IPNDM": IPNDM,
    "EulerMaruyama": EulerMaruyama,
    "ExponentialSDE": ExponentialSDE,
    "EDMStochastic": EDMStochastic,
}
