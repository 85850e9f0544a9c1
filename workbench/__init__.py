"""Diffusion Workbench: see why a diffusion model does what it does.

``import workbench as wb`` brings nothing heavier than torch; each name below is loaded when it is
first used.
"""

from importlib import import_module

__version__ = "0.1.0"

#: Public names, by the module they live in.
_HOMES = {
    "workbench.processes": "Cosine EDM OU PROCESSES Process RectifiedFlow SubVP VE VP "
    "AFFINE IRSDE OUVE RDDM Resfusion "
    "SPECTRAL Blurring Columns DCT EqualSNR Hartley HeatDissipation ShortestPath",
    "workbench.processes.interpolants": "PATHS",
    "workbench.denoisers": "Conditional DENOISERS Denoiser Empirical Gaussian Guided Local "
    "Mixture Neural Perturbed Sphere Spliced",
    "workbench.diffusion": "Diffusion",
    "workbench.interpolant": "Interpolant",
    "workbench.sampling": "GRIDS Grid Program Record SAMPLERS Sampler",
    "workbench.registry": "register",
    "workbench.sampling.methods": "DDIM DEIS DPMSolver DPMSolverPP EDMStochastic Euler "
    "EulerMaruyama ExponentialSDE Heun INVERSIONS IPNDM Midpoint RK4 "
    "RungeKutta UniPC",
    "workbench.sampling.methods.ancestral": "DDPM ReverseDiffusion",
    "workbench.sampling.methods.deblur": "InverseHeat",
    "workbench.sampling.methods.evodiff": "EVODiff",
    "workbench.sampling.methods.gibbs": "DenoisingMCMC",
    "workbench.sampling.methods.transport": "DPMOT",
    "workbench.sampling.methods.inversion": "DDIMInversion FixedPointInversion Inversion Latent",
    "workbench.sampling.methods.coupled": "BDIA BELM EDICT",
    "workbench.sampling.reversal": "reversible",
    "workbench.sampling.methods.predictor_corrector": "PredictorCorrector",
    "workbench.sampling.methods.reversible": "ReversibleHeun",
    "workbench.sampling.methods.adaptive": "RK45",
    "workbench.sampling.methods.dpm_v3": "DPMSolverV3 ModelStatistics",
    "workbench.sampling.methods.taylor": "GENIE",
    "workbench.trajectory": "RunError Trajectory sample",
    "workbench.datasets": "DATASETS Data",
    "workbench.lenses": "LENSES Lens measure",
    "workbench.studies": "Study SweepSpec run submit sweep",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
_MODULES = ("datasets", "exact", "learning", "lenses", "studies", "testing", "views")

__all__ = [*sorted(_HOME_OF), *_MODULES, "__version__"]


def __getattr__(name: str):
    if name in _HOME_OF:
        value = getattr(import_module(_HOME_OF[name]), name)
    elif name in _MODULES:
        value = import_module(f"workbench.{name}")
    else:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
