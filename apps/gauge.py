"""Gauge: which part of a score moves density, what the rest does, and which dimension it sees."""

from workbench.studies.gauging import Gauging
from workbench.ui import tasks
from workbench.ui.modules import joined
from workbench.ui.panels import PanelsPane, panels_page
from workbench.ui.section import lens_section

TITLE = "Gauge"
DESCRIPTION = "Which part of a network's field moves density, which is free, and what that changes."

#: What the page opens with.
OPENS = {"data": "ring", "denoiser": "Neural", "process": "VP", "grid": "uniform"}

ABOUT = r"""
A network's score s need not be a gradient. It splits as s = ∇φ + r with ∇·(p r) = 0: only ∇φ
moves density, the gauge part r carries it in circles.

* **Field, conservative part, gauge part** at the noise level of the slider, times ρ; the split
  is solved on a grid under the density that is shaded. A part much smaller than the field is drawn
  larger, and says by how much.
* **Gauge** adds c A ∇log p to the score, A a quarter turn (of many dimensions, in the plane
  of the first two principal axes): of every density an exact gauge. The marginals stay, the paths
  swirl.
* **Steps**: Euler's method in t steps along straight lines where the paths are circles. The exact
  W₂ of its law is that of the Gaussian with the mean and covariance of the data; dots are of the
  points that are drawn, grey is what as many points of the truth show.
* **Not a gradient**: the antisymmetric part of the denoiser's Jacobian. It is not the size of the
  gauge part. **Wrong beyond the gauge**: how far the score's error e is from
  ∇·(p e) = 0, where it would be harmless; of images the divergence is estimated along random
  directions, with two standard errors.
* **Size of the gauge part**: in the plane by the grid, grey what the grid may be off by. In more
  dimensions from samples, between what the gradients of features leave of the field (at most) and
  its projection onto fields of no flux (dashed, at least); where both are far apart, the samples do
  not tell.
* **Dimension** is a curve over the noise and a number only where it is level: the bars at the foot.
  Grey is what an even Gaussian of the same spread would show.

The density p is that of the model where it is a law itself, else of the data's law; of images,
whose law is not known, that of the noised data points, and where the noise is less than a quarter
of the distance between neighbours, the error is that to the points themselves.

Networks that ship for the data stand beside the model (form, on top). The curves are computed while
the page is looked at; what they say is told when the pointer rests on their titles.

Keys: ← → step through the noise levels, ↑ ↓ change the gauge, Page Up and Page Down the steps,
Space plays.

Sources: Horvat & Pfister 2024, arXiv:2402.03845; Kamkari et al. 2024, arXiv:2406.03537; Stanczuk et
al. 2022, arXiv:2212.12611; Tempczyk et al. 2022, arXiv:2206.14882.
"""


class GaugePane(PanelsPane):
    """All panels of the page, drawn in the browser."""

    _esm = joined("panels", "gauge")


def page():
    return panels_page(
        GaugePane,
        title=TITLE,
        compute=tasks.gauge_seen,
        part=tasks.gauge_part,
        about=ABOUT,
        sections=[lens_section("gauge")],
        options=Gauging,
        opens=OPENS,
        hidden=("sampler", "run", "seeds", "record"),
    )
