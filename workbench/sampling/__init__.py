"""How we walk back: grids, noise, programs, the loop, what to record, and the methods."""

from workbench.sampling.grid import GRIDS, Grid, Node, levels
from workbench.sampling.loop import NotFinite, Run, walk
from workbench.sampling.methods import SAMPLERS, Sampler
from workbench.sampling.noise import NOISES, BrownianSource, NoiseSource
from workbench.sampling.program import Apply, Combine, Evaluate, Program, Step
from workbench.sampling.record import FIELDS, Record, Recorder
