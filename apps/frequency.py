"""Frequency: in which order the bands of a picture appear, beside the order they must have."""

from workbench.studies.banded import Looking
from workbench.ui.modules import joined
from workbench.ui.panels import PanelsPane, panels_page
from workbench.ui.section import lens_section
from workbench.ui.tasks import banded

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

Try other processes on a uniform grid. *EqualSNR*: with noise shaped like the data all bands appear
at once, so the order is not a property of diffusion, but of white noise on data that are not white.
*ShortestPath*, the geodesic between the laws of data and noise, and *Blurring*, which blurs while
it adds noise, move each band's place; the line of Gaussian data moves with them. The noise level of
such a process is one for all of its modes.

**What networks lose**: of pictures that no network was trained on, noised, the share of each band's
energy that a network recovers, beside the largest network trained on the same pictures; with its
error, whether or not that excludes zero. Take the denoiser *Neural* and a slim checkpoint.

Sources: Rissanen, Heinonen & Solin 2022, arXiv:2206.13397; Wang & Vastola 2023, arXiv:2303.02490;
Falck et al. 2025, arXiv:2505.11278; Yang et al. 2022, arXiv:2211.17106; Das et al. 2023,
arXiv:2306.00501; Hoogeboom & Salimans 2023, arXiv:2209.05557.
"""


class BandsPane(PanelsPane):
    """The heat map, when each band emerges, and the pictures, drawn in the browser."""

    _esm = joined("panels", "bands")


def page():
    return panels_page(
        BandsPane,
        title=TITLE,
        compute=banded,
        about=ABOUT,
        sections=[lens_section("spectrum"), lens_section("deficit", "What networks lose")],
        options=Looking,
        opens=OPENS,
        hidden=("record",),
    )
