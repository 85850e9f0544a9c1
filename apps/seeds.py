"""Seeds: what a seed decides in every class, and whether some are better than others."""

from workbench.studies.seeding import CLASSES, Seeding
from workbench.ui import tasks
from workbench.ui.modules import joined
from workbench.ui.panels import PanelsPane, panels_page
from workbench.ui.section import lens_section

TITLE = "Seeds"
DESCRIPTION = "What the seed decides, in every class; whether it is to be seen, and golden seeds."

#: What the page opens with.
OPENS = {
    "data": "digits",
    "denoiser": "Conditional",
    "process": "EDM",
    "sampler": "Heun",
    "grid": "karras",
    "grid.steps": 30,
    "seeds.count": 64,
}

ABOUT = r"""
The same seeds are run in every class: a row is a class, a column a seed. What a column has in
common is the seed's. The classes are those of a conditional model; of another, the Gaussians with
the mean and covariance of the data of each label.

The picture has five **views**; the parts of the last three are computed while they are looked at.

**Seeds**

* **Variance** of the outputs over classes and seeds, in parts: of the class, of the seed in all
  classes alike, and of both together; a dot is an estimate with two standard errors, a line the
  exact value of Gaussian classes.
* **Seeds named**: a classifier learns the seeds from two thirds of the classes and is tried on the
  rest. A seed may fix all noise; its start alone, with fresh noise on the way; or nothing. The grey
  band is chance.
* **Quality by seed**: small dots are classes, large ones the mean of a seed. The grey band is where
  the best of as many seeds lies by chance alone; only what is beyond it is golden.
* **Seed's share by pixel**: of the variance within classes, what the seed decides in all of them.
* **Noise kept**: the correlation of initial noise and output by mode of the data, the largest
  variance first.

**Maps**: the seed's share of each property of a sample, by pixel and by band of spatial frequency;
and whom each seed is taken for.

**ODE to SDE**: the slider adds fresh noise on the way, from none ($κ = 0$) to that of the
reverse SDE ($κ = 1$). The start is forgotten, fine detail first: a mode of variance $\lambda$
keeps $(1 + \rho_T^2/\lambda)^{-κ/2}$ of it. *Fresh noise* of the form (eta) does the same to
all views, with $κ = \eta^2$.

**Samplers and models**: the seed that is lit under half of the steps, other samplers, other models
of the data and models of two halves of it that share no point; how far the order of the seeds and
their samples agree with those of the study's run.

**Surgery**: drag a patch on the noise of the receiver, and the donor's noise is put there; or
transplant a band, go along the great circle to the donor, turn towards it, average all seeds, or
search for one noise whose samples look like the donor's of the first class in all classes.

Click a seed to light it in every panel; *Follow* opens it on the page *Trajectories*.

Keys: v and V change the view, ← → step through the noise levels, Space plays, ↑ ↓ choose a seed,
Escape lets it go, + − change the fresh noise. On the noise in *Surgery* the arrows move the patch
and Shift with arrows sizes it.

Sources: Xu et al. 2024, arXiv:2405.14828; Searle, Casella & McCulloch 1992, *Variance Components*;
the predictions are derived in this project.
"""


class SeedsPane(PanelsPane):
    """All panels of the page, drawn in the browser."""

    _esm = joined("panels", "seeds")


def page():
    return panels_page(
        SeedsPane,
        title=TITLE,
        compute=tasks.seeds_seen,
        part=tasks.seeds_part,
        rows=CLASSES,
        about=ABOUT,
        sections=[lens_section("golden")],
        options=Seeding,
        opens=OPENS,
        hidden=("record", "run"),
    )
