"""How we walk back: one file per family of methods."""

from workbench.registry import View, register
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
from workbench.sampling.methods.runge_kutta import RK4, Euler, Heun, Midpoint, RungeKutta
from workbench.sampling.methods.stochastic import EDMStochastic, EulerMaruyama, ExponentialSDE
from workbench.sampling.methods.taylor import GENIE
from workbench.sampling.methods.transport import DPMOT

for _kind in (
    *(Euler, Heun, Midpoint, RK4, RK45, ReversibleHeun),
    *(DDIM, DPMSolver, DPMSolverPP, DPMSolverV3, UniPC, DEIS, IPNDM, GENIE, EVODiff, DPMOT),
    *(DDPM, EulerMaruyama, ReverseDiffusion, ExponentialSDE, EDMStochastic),
    *(PredictorCorrector, DenoisingMCMC, InverseHeat),
    *(DDIMInversion, FixedPointInversion, BDIA, EDICT, BELM),
):
    register(_kind)

#: Every sampler by name.
SAMPLERS = View("sampler")

#: Every inversion by name.
INVERSIONS = View("inversion")
