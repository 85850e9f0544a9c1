"""The notebook in a real JupyterLab, with no internet: the form, the player, the figures."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import free_port

if not find_spec("jupyterlab"):  # importing it takes seconds
    pytest.skip("needs JupyterLab: pip install -e '.[notebooks]'", allow_module_level=True)

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "trajectories.ipynb"

SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none", "kernelShutdown": True},
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
}

#: Whether the notebook is open and its kernel answers.
READY = """async () => {
  const session = window.jupyterapp?.shell.currentWidget?.sessionContext;
  await session?.ready;
  return session?.session?.kernel?.status === "idle";
}"""


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab of its own that shows a copy of the notebook."""
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(NOTEBOOK, work)
    for name, values in SETTINGS.items():
        file = tmp_path / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    port, token = free_port(), secrets.token_hex(16)
    own = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": work,
        "IdentityProvider.token": token,
        "LabApp.expose_app_in_browser": True,
        "LabApp.extension_manager": "readonly",
        "LabApp.check_for_updates_class": "jupyterlab.handlers.announcements.NeverCheckForUpdate",
    }
    log = tmp_path / "lab.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                *(f"--{name}={value}" for name, value in options.items()),
            ],
            env=os.environ | {name: str(tmp_path / place) for name, place in own.items()},
            cwd=work,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        try:
            status = f"{address}/api/status?token={token}"
            wait_until(lambda: server.poll() is not None or answers(status), "no answer")
            assert server.poll() is None, "it has ended"
        except AssertionError as error:
            said = log.read_text(encoding="utf-8")[-3000:]
            pytest.fail(f"JupyterLab did not start, {error}:\n{said}", pytrace=False)
        yield f"{address}/lab/tree/{NOTEBOOK.name}?token={token}"
    finally:
        end(server)


def wait_until(there, otherwise: str, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, f"{otherwise} after {seconds} s"
        time.sleep(0.1)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def end(server: subprocess.Popen) -> None:
    """End the server, which ends its kernels; if it does not, end the whole group."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, sign)
            server.wait(10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def keep(page, name: str) -> None:
    """Save a picture of the explorer where WORKBENCH_SCREENSHOTS says."""
    folder = os.environ.get("WORKBENCH_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.locator(".wb-explorer").evaluate("explorer => explorer.scrollIntoView()")
        page.wait_for_timeout(600)  # a theme fades in
        page.screenshot(path=Path(folder) / f"lab-{name}.png")


def wait_frame(page, condition: str) -> None:
    script = "c => { const frame = Number(document.querySelector('.wb-player').dataset.frame);"
    page.wait_for_function(f"{script} return {condition}; }}")


def test_the_notebook_runs_and_plays_in_jupyterlab(lab, browser_page, external_requests):
    page = browser_page
    page.set_viewport_size({"width": 1500, "height": 1000})
    page.emulate_media(reduced_motion="no-preference")
    page.goto(lab)
    wait_until(lambda: page.evaluate(READY), "the notebook has no kernel")
    page.evaluate(
        "() => { window.finished = jupyterapp.commands.execute('notebook:run-all-cells') }"
    )
    player = page.locator(".wb-player")
    page.wait_for_selector(".wb-player[data-drawn]")
    page.evaluate("() => window.finished")
    page.evaluate("() => jupyterapp.commands.execute('filebrowser:hide-main').catch(() => null)")

    # Every cell ran: the last one says what it found to be true.
    assert page.locator(".jp-OutputArea-output[data-mime-type*='error']").count() == 0
    assert "bit for bit" in page.locator(".jp-Cell .jp-OutputArea-output").last.inner_text()
    assert page.locator(".jp-OutputArea-output img").count() == 2
    assert page.locator("mjx-container").count() > 5

    # It opens at pure noise, playing. Keys step and play it; none of them reaches the notebook.
    cells = page.locator(".jp-Notebook .jp-Cell")
    before = cells.count()
    canvas = player.locator(".wb-stage")
    wait_frame(page, "frame > 0")
    assert player.bounding_box()["height"] == 600
    player.scroll_into_view_if_needed()
    player.focus()
    page.keyboard.press("Home")
    wait_frame(page, "frame === 0")
    at_noise = canvas.screenshot()
    page.keyboard.press("ArrowRight")
    wait_frame(page, "frame === 1")
    assert canvas.screenshot() != at_noise
    page.keyboard.press("Space")
    wait_frame(page, "frame > 3")
    page.keyboard.press("Space")
    stopped = player.get_attribute("data-frame")
    page.wait_for_timeout(300)
    assert player.get_attribute("data-frame") == stopped
    page.keyboard.press("d")
    page.keyboard.press("d")
    assert cells.count() == before
    keep(page, "light")

    # A value that is not allowed gets its sentence, and the picture stays; a good one gets its run.
    steps = page.locator(".wb-explorer .wb-control", has_text="steps").locator("input")
    steps.fill("0")
    steps.press("Tab")
    sentence = page.locator(".wb-explorer .wb-wrong .wb-sentence")
    sentence.wait_for()
    assert sentence.inner_text().startswith(
        "grid.steps was 0; it must be a whole number, at least 1"
    )
    assert page.locator(".wb-time").get_attribute("aria-valuemax") == "32"
    keep(page, "wrong")
    steps.fill("12")
    steps.press("Tab")
    page.wait_for_selector(".wb-time[aria-valuemax='12']")
    sentence.wait_for(state="hidden")

    page.evaluate(
        "() => jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
    )
    page.wait_for_selector(".wb-player[data-mode='dark']")
    keep(page, "dark")

    assert external_requests(page) == []
    assert page.wb_errors == []
