"""Frequency: in which order the bands of a picture appear, beside the order they must have."""

import panel as pn

from workbench.studies.banded import Looking
from workbench.ui.bands import BandsPane
from workbench.ui.page import StudyPage
from workbench.ui.section import lens_section
from workbench.ui.tasks import BandsSeen, banded

TITLE = "Frequency"
DESCRIPTION = "See in which order the parts of a picture appear, and whether the data say so."

#: What the page opens with: pictures.
OPENS = {"data": "digits", "denoiser": "Empirical", "sampler": "Heun", "grid.steps": 40}

ABOUT = r"""
A picture is split into bands of spatial frequency: its mean (DC), and octaves of rings of cycles
per shorter side; or into levels of the Haar wavelet, coarse to fine. Drawn is how much of each band
the denoised state holds on the way, as a share of what the picture holds of it in the end. Rows are
bands, columns noise levels $\rho = \sigma/\alpha$, noise on the left.

* **The line** is where half of a band is there. **The dashed line** is where Gaussian data of the
  same mean and covariance have it: a sum over their modes, in closed form, the same for every
  process. A band that is earlier than that is drawn by a denoiser that knows more of the data than
  their covariance, as one does that remembers single pictures.
* **Beneath**, of each band, a bar from 10 to 90 %, a dot at 50 % with its 95 % interval (bootstrap
  over groups of samples), and a tick where Gaussian data have it.
* **Small dots** are single samples, for the band that is looked at. Drag over them, or take the
  earliest or the latest, to see which pictures they are.
* **Gain** is the share of the state that the denoiser passes on; Gaussian data have that of the
  Wiener filter. **Coherence** is the correlation of the state and the denoised state.
* Move over the heat map to see each band at that instant; a click holds the place, and the arrow
  keys move it.

Try the process *EqualSNR* on a uniform grid: with noise shaped like the data all bands appear at
once. So the order is not a property of diffusion, but of white noise on data that are not white.

Sources: Rissanen, Heinonen & Solin 2022, arXiv:2206.13397; Wang & Vastola 2023, arXiv:2303.02490;
Falck et al. 2025, arXiv:2505.11278.
"""


def page():
    bands = BandsPane(sizing_mode="stretch_width", margin=0)

    def show(seen: BandsSeen) -> None:
        bands.data = seen.scene

    return StudyPage(
        title=TITLE,
        compute=banded,
        show=show,
        view=pn.Column(bands, sizing_mode="stretch_width", margin=0),
        summary=lambda seen: seen.facts,
        dataset=lambda seen: seen.run,
        about=ABOUT,
        sections=[lens_section("spectrum")],
        options=Looking,
        opens=OPENS,
        hidden=("record",),
    ).page()
