"""What the tests of pages share: a served workbench, and a page as its user sees it."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import xarray as xr
from helpers import free_port

import workbench as wb

PLAYER = ".wb-player"

#: Seconds that anything may take on a machine that does much else.
LONG = 300

#: Drops a file on the player, as from the desktop.
DROP = """(player, [content, name]) => {
    const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
    const files = new DataTransfer();
    files.items.add(new File([bytes], name));
    const event = new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true });
    player.dispatchEvent(event);
}"""

#: Numbers of colours on the canvases of the figures in sight, without the player's: one on a canvas
#: that is blank. A narrow canvas is an entry of a legend, or a picture in a table.
COLOURS = """() => {
    const canvases = (root) => [...root.querySelectorAll('*')].flatMap((e) => [
        ...(e.matches('canvas:not(.wb-player *)') && e.offsetWidth > 60 && e.getContext('2d')
            && e.width ? [e] : []),
        ...(e.shadowRoot ? canvases(e.shadowRoot) : []),
    ]);
    return canvases(document).map((canvas) => {
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size;
    });
}"""


@contextmanager
def served(log: Path, *options: str, silent: bool = True):
    """The port of a workbench that is served until the end.

    Unless ``silent`` is false, its log says nothing of our code: pages that are asked for and left
    at once may be rendered still when they are gone.
    """
    port = free_port()
    command = [sys.executable, "-m", "workbench.cli", "serve", "--port", str(port), "--no-show"]
    with log.open("wb") as out:
        server = subprocess.Popen(
            [*command, *options], stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + LONG
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/liveness", timeout=2)
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield port
        assert server.poll() is None, log.read_text()
        ours = [line for line in log.read_text().splitlines() if "workbench/" in line]
        assert not (silent and ours), log.read_text()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


class Gate:
    """A port that leads to another one while it is open: closed, its server is gone for a browser.

    Args:
        port, to: where it listens on this machine, and where that leads.
    """

    def __init__(self, port: int, to: int) -> None:
        self._port, self._to, self._ends, self._open = port, to, [], True

    def __enter__(self) -> "Gate":
        self._door = socket.create_server(("127.0.0.1", self._port))
        self._thread(self._accept)
        return self

    def __exit__(self, *_) -> None:
        self._open = False
        for end in (self._door, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _thread(self, target, *given) -> None:
        threading.Thread(target=target, args=given, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._door.accept()
                there = socket.create_connection(("127.0.0.1", self._to))
                self._ends += [here, there]
                if not self._open:  # accepted while it was closed
                    here.close()
                    there.close()
                    return
                self._thread(self._pass, here, there)
                self._thread(self._pass, there, here)

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while content := one.recv(65536):
                other.sendall(content)
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)


class Page:
    """The page as its user sees it."""

    def __init__(self, page, port, host="127.0.0.1") -> None:
        self.page, self.home = page, f"http://{host}:{port}/trajectories"

    def open(self, query: str = "") -> "Page":
        self.page.goto(self.home + (f"?{query}" if query else ""))
        self.page.wait_for_selector(f"{PLAYER}[data-drawn]")
        return self

    @property
    def player(self):
        return self.page.locator(PLAYER)

    @property
    def frame(self) -> float:
        return float(self.player.get_attribute("data-frame"))

    def shows(self, words: str) -> None:
        """Wait until the picture is of the run whose title holds ``words``."""
        self.page.wait_for_function(
            """([selector, words]) => {
                const find = (root) => root.querySelector(selector)
                    ?? [...root.querySelectorAll('*')]
                        .map((e) => e.shadowRoot && find(e.shadowRoot)).find(Boolean);
                return find(document)?.getAttribute('aria-label')?.includes(words);
            }""",
            arg=[PLAYER, words],
        )

    def says(self, words: str) -> None:
        self.page.get_by_text(words).first.wait_for()

    def enter(self, label: str, value: str) -> None:
        box = self.page.get_by_label(label, exact=True)
        box.fill(value)
        box.press("Enter")

    def choose(self, label: str, option: str) -> None:
        self.page.get_by_role("combobox", name=label, exact=True).select_option(label=option)

    def pixels(self) -> bytes:
        return self.page.locator(".wb-stage").screenshot()

    def looks_other_than(self, before: bytes) -> None:
        """Wait until the picture has changed."""
        deadline = time.monotonic() + LONG
        while self.pixels() == before:
            assert time.monotonic() < deadline, "the picture did not change"
            self.page.wait_for_timeout(50)

    def open_section(self, title: str) -> None:
        self.page.get_by_role("tab", name=title).click()

    def turn_theme(self) -> None:
        self.page.get_by_role("button", name="Light or dark theme").click()

    def draws(self, count: int) -> None:
        """Wait until ``count`` figures are in sight, none of them blank."""
        deadline = time.monotonic() + LONG
        while sum(colours > 20 for colours in self.page.evaluate(COLOURS)) != count:
            assert time.monotonic() < deadline, self.page.evaluate(COLOURS)
            self.page.wait_for_timeout(100)

    def study(self) -> wb.Study:
        """The study that the address stands for."""
        return wb.Study.from_query(self.page.url.partition("?")[2])

    def data(self, folder: Path) -> xr.Dataset:
        """What the Data button hands over."""
        self.page.get_by_role("button", name="Export").click()
        with self.page.expect_download() as download:
            self.page.get_by_role("menuitem", name="Data").click()
        with zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())) as archive:
            archive.extractall(folder)
        return xr.open_zarr(folder / "run.zarr", consolidated=False).load()

    def keep_screenshot(self, name: str) -> None:
        if folder := os.environ.get("WORKBENCH_SCREENSHOTS"):
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))
