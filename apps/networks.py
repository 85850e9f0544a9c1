"""Networks: train one and watch it, beside the least loss that it could have."""

import panel as pn

from workbench.ui.training import TrainingPage

TITLE = "Networks"
DESCRIPTION = "Train a network and watch it, beside the least loss it could have; open your own."

ABOUT = r"""
A training goes on in a process of its own: close the page, and it is still there by its address.
*Cancel* ends it, *Continue* takes it up where it ended, to the same weights as if it had never been
interrupted, and *Fork* begins a new one with the weights that are shown.

* **Loss at each noise level** is the mean squared error $E|D - x_0|^2/d$, as a share of what the
  best linear denoiser (the Gaussian with the mean and covariance of the points) loses on the same
  draws. Dashed is the least possible loss of the data's own law, where that is known: a network
  that lies on it has nothing left to learn there. Dotted is the denoiser that has memorised the
  training set. Where the curve of the training points falls below that of the held-out ones, the
  network has begun to remember.
* **Loss as it is trained** draws the same share over steps, one curve for each noise level.
* **What it draws**: samples of the averaged weights, always from the same seeds. In the plane the
  strokes are its field, a part of the way from a state to its denoised one, beside that of the best
  denoiser.

**Your own** stand in the tab *Networks*, where the workbench was started with their folder
(workbench serve --networks FOLDER): checkpoints of workbench train, pipelines of diffusers, as a
folder or packed as a zip file, and ONNX files with a card, net.json beside net.onnx, that says what
they predict. These open on the other pages beside data of their shape, and are tried on the data
first. A pipeline is read from JSON and safetensors alone. A TorchScript file is a program that may
write files: no page opens one, a study on your own command line does under WORKBENCH_TORCHSCRIPT=1.

Sources: Karras et al. 2022, arXiv:2206.00364; Xu et al. 2025, arXiv:2506.13763.
"""


def page():
    return TrainingPage(TITLE, ABOUT, pn.state.cache.get("networks")).page()
