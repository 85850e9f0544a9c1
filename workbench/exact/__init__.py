"""Closed forms: what a model, a sampler or an estimator must give, known without sampling."""

from workbench.exact.critical import (
    Critical,
    bimodality,
    class_retention,
    collapse,
    h_at,
    instability,
    isotropic_collapse,
    phi,
    speciation,
)
from workbench.exact.dimension import (
    denoiser_trace,
    flipd,
    flipd_mean,
    flow_singular_values,
    lidl_mean,
    score_singular_values,
    sphere_flipd,
    sphere_trace,
)
from workbench.exact.distances import kl, w2, w2_floor, w2_null
from workbench.exact.fisher import fisher_distance, fisher_length
from workbench.exact.flow import (
    band_emergence,
    denoised_factor,
    denoised_path,
    emergence,
    flow_factor,
    flow_path,
    perturbation_gain,
)
from workbench.exact.fokker_planck import (
    flow_residual,
    linear_score_residual,
    log_residual,
    mean_flow_residual,
    scaled_flow,
    scaled_law,
    scaled_log_residual,
    scaled_score_residual,
    score_residual,
)
from workbench.exact.gap import GapBound, gap_bound
from workbench.exact.gauge import (
    GaugeSplit,
    asymmetry,
    circulation,
    curl,
    gauge_field,
    gauge_split,
    gauge_violation,
    line_gradient,
    symmetrised,
)
from workbench.exact.helmholtz import GridSplit, grid_split
from workbench.exact.langevin import langevin_variance
from workbench.exact.law import law
from workbench.exact.likelihood import Likelihood, hutchinson_variance, log_likelihood, log_prior
from workbench.exact.planarity import expected_explained_variance
from workbench.exact.reverse import initialisation_error, retention, reverse_law, truncation_error
from workbench.exact.seeds import VarianceComponents, variance_components
from workbench.exact.transfer import Transfer, transfer
from workbench.exact.tuned import tuned_grid
from workbench.exact.turned import turned_law
