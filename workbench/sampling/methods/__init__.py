"""How we walk back: one file per family of methods."""

from workbench.sampling.methods.adaptive import RK45
from workbench.sampling.methods.ancestral import DDPM, ReverseDiffusion
from workbench.sampling.methods.base import Sampler
from workbench.sampling.methods.coupled import BDIA, BELM, EDICT
from workbench.sampling.methods.deblur import InverseHeat
from workbench.sampling.methods.dpm import DPMSolver, DPMSolverPP
from workbench.sampling.methods.dpm_v3 import DPMSolverV3, ModelStatistics
from workbench.sampling.methods.evodiff import EVODiff
from workbench.sampling.methods.exponential import DDIM
from workbench.sampling.methods.gibbs import DenoisingMCMC
from workbench.sampling.methods.inversion import (
    DDIMInversion,
    FixedPointInversion,
    Inversion,
    Latent,
)
from workbench.sampling.methods.multistep import DEIS, IPNDM, UniPC
from workbench.sampling.methods.predictor_corrector import PredictorCorrector
from workbench.sampling.methods.reversible import ReversibleHeun
from workbench.sampling.methods.runge_kutta import RK4, Euler, Heun, Midpoint
from workbench.sampling.methods.stochastic import EDMStochastic, EulerMaruyama, ExponentialSDE
from workbench.sampling.methods.taylor import GENIE
from workbench.sampling.methods.transport import DPMOT

__all__ = [
    "BDIA",
    "BELM",
    "DDIM",
    "DDPM",
    "DEIS",
    "DPMOT",
    "EDICT",
    "GENIE",
    "INVERSIONS",
    "IPNDM",
    "RK4",
    "RK45",
    "SAMPLERS",
    "DDIMInversion",
    "DPMSolver",
    "DPMSolverPP",
    "DPMSolverV3",
    "DenoisingMCMC",
    "EDMStochastic",
    "EVODiff",
    "Euler",
    "EulerMaruyama",
    "ExponentialSDE",
    "FixedPointInversion",
    "Heun",
    "InverseHeat",
    "Inversion",
    "Latent",
    "Midpoint",
    "ModelStatistics",
    "PredictorCorrector",
    "ReverseDiffusion",
    "ReversibleHeun",
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
    "DDPM": DDPM,
    "ReverseDiffusion": ReverseDiffusion,
    "PredictorCorrector": PredictorCorrector,
    "ReversibleHeun": ReversibleHeun,
    "DPMSolverV3": DPMSolverV3,
    "GENIE": GENIE,
    "RK45": RK45,
    "EVODiff": EVODiff,
    "DenoisingMCMC": DenoisingMCMC,
    "DPMOT": DPMOT,
    "InverseHeat": InverseHeat,
}

#: Every inversion by name. A new one is one class and one entry here.
INVERSIONS: dict[str, type[Inversion]] = {
    "DDIMInversion": DDIMInversion,
    "FixedPointInversion": FixedPointInversion,
    "BDIA": BDIA,
    "EDICT": EDICT,
    "BELM": BELM,
}
