"""What an installation has, what is missing, and the command that installs it."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib import metadata

#: Packages by what they are needed for, with the command that installs them.
GROUPS = {
    "core": ("numpy scipy scikit-learn pywavelets xarray zarr pyyaml typer safetensors", ""),
    "pages": ("panel holoviews bokeh anywidget matplotlib scikit-image", "[serve]"),
    "notebooks": (
        "jupyterlab ipywidgets anywidget papermill nbclient ipykernel",
        "[notebooks]",
    ),
    "sweeps on a cluster": ("dask distributed", "[distributed]"),
    "browser tests": ("playwright pytest", "[dev]"),
}


def report() -> tuple[list[str], bool]:
    """Lines for a person to read, and whether the core and the pages are whole."""
    from workbench import __version__

    lines = [f"workbench  {__version__}", f"python     {platform.python_version()} ({sys.prefix})"]
    torch_line, whole = _torch()
    lines.append(torch_line)
    for group, (names, extra) in GROUPS.items():
        missing, found = [], []
        for name in names.split():
            try:
                found.append(f"{name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                missing.append(name)
        lines.append(f"{group + ':':15}{', '.join(found) or 'none'}")
        if missing:
            whole &= group not in ("core", "pages")
            install = f"pip install 'diffusion-workbench{extra}'"
            lines.append(f"{'':15}missing: {', '.join(missing)}. Install: {install}")
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
    )
    hint = "not found; needed by the browser tests only. Install: apt install chromium"
    lines.append(f"{'browser:':15}{browser or hint}")
    lines.append("everything a page needs is here" if whole else "something is missing, see above")
    return lines, whole


def _torch() -> tuple[str, bool]:
    try:
        import torch
    except ImportError as error:
        return f"torch      missing ({error}). Install: pip install torch", False
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        device = f"{torch.cuda.device_count()} CUDA device(s): {', '.join(sorted(names))}"
    elif torch.backends.mps.is_available():
        device = "Apple GPU (mps)"
    else:
        device = f"CPU only, {torch.get_num_threads()} threads"
    return f"torch      {torch.__version__}, {device}", True
