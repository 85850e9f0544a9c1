"""Gap: ODE, SDE and truth of one score, its Fokker-Planck residual, and what an error does."""

from workbench.studies.gapping import Gapping
from workbench.ui import tasks
from workbench.ui.modules import joined
from workbench.ui.panels import PanelsPane, panels_page
from workbench.ui.section import lens_section

TITLE = "Gap"
DESCRIPTION = "Why ODE and SDE samples of one score differ: where, at which noise, and by how much."

ABOUT = r"""
One score drives the probability flow (ODE) and the reverse SDE. Where the score is that of noised
data both sample the same law; where it breaks the Fokker-Planck equation they drift apart.

* **Residual.** The map is the size of $\sigma^3\epsilon/g^2$ per coordinate at the noise level
  of the slider: in units of the noise prediction, the same under every process. Beside it, over
  $\rho$, its root mean square over the SDE's states.
* **ODE and SDE** start from the same noise, sample by sample. Drag over some samples: they are lit
  in every panel, and their own residual is drawn dashed. Of the truth, which has samples of its
  own, what lies in the same place is lit.
* **Gap by noise level.** $W_2$ of the ODE to a run with noise above $\rho$ only. Where the curve
  rises, noise matters.
* **W₂ of each pair**, of means and covariances and of the points, with two standard errors and the
  null band; hover for all statistics and p-values. The bound by the residual is drawn for
  $\eta = 1$. Between far modes it may be huge.
* **A deliberate error** (form, on top) changes the score by a known amount: a *scale* and a *gauge*
  relative to the score, a *bias* and a *gradient* part constant in $x/\alpha$, relative to the
  score at the noisiest level. Its consequence is drawn in closed form for the Gaussian with the
  data's mean and covariance. A gauge has a residual and no consequence.
* **Penalty's weight** puts another network on the bench: one whose residual was penalised in
  training. *Gap by penalty's weight* stands beside it: squared sliced $W_2$ of each pair for
  weights 0, 0.1, 1 and 10, with intervals over seeds of sampling or, where a network was trained
  several times, of training; hover for what it says. Deveney et al. found that the gap falls with
  the weight and that the SDE pays for it.

Keys: ← → step through the noise levels, Space plays, Escape clears the brush.

Sources: Deveney et al. 2023, arXiv:2311.15996; Lai et al. 2022, arXiv:2210.04296; the bound and the
closed forms are derived in this project.
"""


class GapPane(PanelsPane):
    """All panels of the page, drawn in the browser."""

    _esm = joined("panels", "gap")


def page():
    return panels_page(
        GapPane,
        title=TITLE,
        compute=tasks.gap_seen,
        about=ABOUT,
        sections=[lens_section("gap")],
        options=Gapping,
        hidden=("sampler", "grid", "run", "seeds", "record"),
    )
