"""The player on a page of its own, without server or kernel: its layout, A beside B, a closer look,
what is taken away and given back, and how fast it draws."""

import base64
import json
import re
import statistics
from dataclasses import replace

import numpy as np
import pytest
from browser.pages import DROP
from PIL import Image

import workbench as wb
from workbench.studies import explore
from workbench.ui.player import offline, scene_of
from workbench.views.scene import flow_part, unpack

SIZES = [(1920, 900), (1366, 600), (1280, 560), (1000, 600), (700, 420), (420, 700), (420, 330)]

#: Boxes of what must be seen whole, and what a click on Play hits.
BOXES = """() => {
    const root = document.querySelector('.wb-player'), boxes = {};
    for (const part of ['.wb-canvas', '.wb-time', '.wb-play', '.wb-bar', '.wb-readout']) {
        const { left, top, right, bottom } = root.querySelector(part).getBoundingClientRect();
        boxes[part] = [left, top, right, bottom];
    }
    const [left, top, right, bottom] = boxes['.wb-play'];
    const hit = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
    return [boxes, Boolean(hit.closest('.wb-play'))];
}"""

SET = """([name, value]) => player.set(name, ['data', 'other', 'flow'].includes(name)
    ? Uint8Array.from(atob(value), (c) => c.charCodeAt(0)) : value)"""

RING = {"data": "ring", "seeds": {"count": 48}, "device": "cpu"}


def ring(steps: int, **sections) -> wb.Study:
    return wb.Study(**RING | {"grid": {"name": "log_snr", "steps": steps}} | sections)


class Picture:
    """A player in a browser, on a page made of it alone."""

    def __init__(self, page, html: str) -> None:
        self.page = page
        page.set_content(html)
        page.wait_for_selector(".wb-player[data-drawn]")
        self.root = page.locator(".wb-player")
        self.canvas = page.locator(".wb-canvas")

    def set(self, name: str, value) -> None:
        text = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        self.page.evaluate(SET, [name, text])

    def get(self, name: str):
        return self.page.evaluate("(name) => player.get(name)", name)

    def stop_at(self, frame: float) -> None:
        self.set("playing", False)
        self.set("frame", frame)
        self.page.wait_for_function(
            "(frame) => document.querySelector('.wb-player').__player.frame === frame", arg=frame
        )
        self.page.wait_for_timeout(150)  # its words follow

    def says(self, pattern: str) -> None:
        self.page.locator(".wb-said", has_text=re.compile(pattern)).wait_for()

    def readout(self) -> str:
        return self.page.locator(".wb-readout").inner_text()

    def view(self, *keys: str) -> dict:
        """The view once it has been told, with ``keys`` and nothing else beside what it had."""
        self.page.wait_for_function(
            "(keys) => JSON.stringify(Object.keys(player.get('view')).sort()) === keys",
            arg=json.dumps(sorted(keys), separators=(",", ":")),
        )
        return self.get("view")


@pytest.fixture(scope="module")
def runs():
    return {steps: scene_of(explore(ring(steps))) for steps in (12, 7)}


def test_the_transport_is_in_view_at_every_size(browser_page, runs, external_requests):
    """Alone and beside another run; it opens at pure noise, plays, and asks for nothing."""
    picture = Picture(browser_page, offline(runs[12]))
    browser_page.wait_for_function("() => !player.get('playing')")  # as the system asks
    assert picture.get("frame") == 0
    browser_page.emulate_media(reduced_motion="no-preference")
    picture = Picture(browser_page, offline(runs[12]))
    browser_page.wait_for_function("() => player.get('frame') > 0")
    digits = scene_of(explore(wb.Study(data="digits", denoiser="Gaussian", seeds={"count": 30})))
    for data, other in ((runs[12], b""), (runs[12], runs[7]), (digits, b""), (digits, digits)):
        picture.set("data", data)
        picture.set("other", other)
        for width, height in SIZES:
            browser_page.set_viewport_size({"width": width, "height": height})
            browser_page.wait_for_timeout(60)
            boxes, hit = browser_page.evaluate(BOXES)
            assert hit, (width, height)
            for left, top, right, bottom in boxes.values():
                assert 0 <= left < right <= width and 0 <= top < bottom <= height, (width, boxes)
            assert boxes[".wb-canvas"][3] <= boxes[".wb-time"][1] + 1
            assert boxes[".wb-time"][3] <= boxes[".wb-bar"][1] + 1
    assert not browser_page.wb_errors and not external_requests(browser_page)


def positions(scene: bytes, name: str = "x"):
    """Log rho at the nodes, and states there."""
    header, arrays = unpack(scene)
    return -np.log(header["axis"]["rho"]), arrays[name]


def test_two_runs_on_one_time_axis(browser_page, runs):
    """Their difference is that of the arrays, each interpolated in log rho, sample by sample."""
    picture = Picture(browser_page, offline(runs[12], runs[7], "difference"))
    assert "grid.steps 12 / 7" in browser_page.locator(".wb-differs").inner_text()
    (at, a), (nodes, b) = positions(runs[12]), positions(runs[7])
    for frame in (3, 9, 12):
        picture.stop_at(frame)
        k = np.clip(np.searchsorted(nodes, at[frame]) - 1, 0, len(nodes) - 2)
        w = (at[frame] - nodes[k]) / (nodes[k + 1] - nodes[k])
        other = (1 - w) * b[k] + w * b[k + 1]
        expected = np.sqrt(np.mean((a[frame] - other) ** 2))
        told = float(re.search(r"RMS of B − A = ([\d.e-]+)", picture.readout())[1])
        assert told == pytest.approx(expected, rel=6e-3)
    # Some seeds in common: these alone; none: a sentence; nothing to compare: a sentence.
    some = scene_of(explore(ring(7, seeds={"first": 40, "count": 20})))
    picture.set("other", some)
    notes = browser_page.locator(".wb-notes")
    assert "8 of 48 (A) and 20 (B) samples have common seeds" in notes.text_content()
    (_, c), frame = positions(some), 12
    picture.stop_at(frame)
    expected = np.sqrt(np.mean((a[frame, 40:] - c[-1, :8]) ** 2))
    told = float(re.search(r"RMS of B − A = ([\d.e-]+)", picture.readout())[1])
    assert told == pytest.approx(expected, rel=6e-3)
    picture.set("other", scene_of(explore(ring(7, seeds={"first": 100, "count": 9}))))
    picture.says("no seed in common, so their samples are not matched")
    picture.set("other", scene_of(explore(wb.Study(data="digits", seeds={"count": 9}))))
    picture.says("one has two-dimensional states, the other images")
    picture.set("other", b"\x10\0\0\0nonsense")
    picture.says("B cannot be shown: ")
    picture.set("other", b"")
    browser_page.locator(".wb-said").wait_for(state="hidden")
    assert not browser_page.wb_errors


def test_an_exact_flow_that_comes_later_is_drawn_over_its_run(browser_page):
    """At the place where the reader is; that of another run is not drawn."""
    made, other = (explore(ring(5, seeds={"first": k, "count": 9})) for k in (0, 1))
    picture = Picture(browser_page, offline(scene_of(replace(made, flow=None, reason="Coming."))))
    picture.stop_at(3)
    notes, layer = browser_page.locator(".wb-notes"), browser_page.locator("[data-layer=exact]")
    assert "Coming." in notes.text_content() and "RMS" not in picture.readout()
    picture.set("flow", flow_part(other.run, other.flow, ("Another's.",)))
    browser_page.wait_for_timeout(150)
    assert "Coming." in notes.text_content() and not layer.count()
    picture.set("flow", flow_part(made.run, made.flow, ("It is there.",)))
    browser_page.wait_for_function(
        "() => document.querySelector('.wb-readout').textContent.includes('RMS error')"
    )
    told = float(re.search(r"RMS error = ([\d.e-]+)", picture.readout())[1])
    assert told == pytest.approx(float(made.flow["rms"][3]), rel=6e-3)
    assert "It is there." in notes.text_content() and layer.is_checked()
    assert picture.get("frame") == 3 and not browser_page.wb_errors


def test_a_closer_look(browser_page, runs):
    """Lasso, click, zoom and count are those of the arrays; a view that is given is restored."""
    view = {"trail": 3, "layers": {"exact": False}}
    picture = Picture(browser_page, offline(runs[12], view=view))
    picture.stop_at(12)
    header, arrays = unpack(runs[12])
    box, last, wide = picture.canvas.bounding_box(), arrays["x"][12], header["window"]["x"][1]
    middle = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
    browser_page.keyboard.down("Shift")
    browser_page.mouse.move(middle[0], box["y"] + 3)
    browser_page.mouse.down()
    for x, y in ((0.49, -0.49), (0.49, 0.49), (0.0, 0.49)):
        browser_page.mouse.move(
            middle[0] + x * box["width"], middle[1] + y * box["height"], steps=3
        )
    browser_page.mouse.up()
    browser_page.keyboard.up("Shift")
    right = np.flatnonzero(last[:, 0] > 0)
    assert picture.view(*view, "selected") == {**view, "selected": right.tolist()[:40]}
    assert f"{len(right)} of 48 chosen" in browser_page.locator(".wb-views").inner_text()
    browser_page.keyboard.press("Escape")
    assert picture.view(*view) == view
    pixel = [middle[0] + last[5, 0] / wide * box["width"] / 2,
             middle[1] - last[5, 1] / wide * box["height"] / 2]  # fmt: skip
    browser_page.mouse.click(*pixel)
    (chosen,) = picture.view(*view, "selected")["selected"]
    assert np.hypot(*(last[chosen] - last[5])) < 0.1
    assert f"seed {chosen}" in browser_page.locator(".wb-tip").inner_text()
    browser_page.mouse.move(*middle)
    browser_page.mouse.wheel(0, -900)
    keys = (*view, "selected", "window")
    window = picture.view(*keys)["window"]
    browser_page.wait_for_timeout(300)
    inside = (last > [window[0], window[2]]) & (last < [window[1], window[3]])
    assert int(picture.root.get_attribute("data-outside")) == np.sum(~inside.all(1)) > 0
    kept = picture.view(*keys)
    browser_page.get_by_role("button", name=re.compile("Zoom out to all")).click()
    browser_page.wait_for_function(
        "(most) => player.get('view').window?.[0] < most", arg=-1.9 * wide
    )
    again = Picture(browser_page, offline(runs[12], view=kept))
    assert again.view(*keys) == kept
    # Of images one is magnified, and the link says which.
    digits = scene_of(explore(wb.Study(data="digits", denoiser="Gaussian", seeds={"count": 30})))
    images = Picture(browser_page, offline(digits))
    box = images.canvas.bounding_box()
    browser_page.mouse.click(box["x"] + 12, box["y"] + 32)
    assert images.view("image") == {"image": 0}
    browser_page.keyboard.press("Escape")
    assert images.view() == {}
    assert not browser_page.wb_errors


def test_what_is_taken_away_can_be_given_back(browser_page, runs, tmp_path):
    picture, study = Picture(browser_page, offline(runs[12])), ring(12)
    picture.set("playing", False)
    assert wb.Study.parse(browser_page.locator("#study").text_content()) == study

    def drop(name: str, content: bytes) -> None:
        picture.page.locator(".wb-player").evaluate(
            DROP, [base64.b64encode(content).decode(), name]
        )

    for kind in ("PNG", "SVG"):
        browser_page.get_by_role("button", name="Take it away").click()
        with browser_page.expect_download() as download:
            browser_page.get_by_role("button", name=f"Picture, {kind}").click()
        file = tmp_path / download.value.suggested_filename
        download.value.save_as(file)
        picture.set("dropped", "")
        drop(file.name, file.read_bytes())
        browser_page.wait_for_function("() => player.get('dropped')")
        assert wb.Study.parse(picture.get("dropped")) == study
    browser_page.locator("select[aria-label=Speed]").select_option("4")
    browser_page.get_by_role("button", name="Take it away").click()
    with browser_page.expect_download() as download:
        browser_page.get_by_role("button", name="Film, WebM").click()
    download.value.save_as(tmp_path / "film.webm")
    assert (tmp_path / "film.webm").read_bytes()[:4] == b"\x1aE\xdf\xa3"  # EBML
    assert picture.get("frame") == 12
    browser_page.get_by_role("combobox", name="Colour").select_option("mode")
    assert picture.view("colour") == {"colour": "mode"}
    browser_page.get_by_role("button", name="Take it away").click()
    with browser_page.expect_download() as download:
        browser_page.get_by_role("button", name="Film, GIF").click()
    with Image.open(download.value.path()) as film:
        film.seek(film.n_frames - 1)
        colours = np.asarray(film.convert("RGB")).reshape(-1, 3).astype(int)
        assert film.n_frames == 48
    for ink in ((0, 114, 178), (230, 159, 0), (0, 158, 115)):  # of three of the modes
        assert (np.abs(colours - ink).max(1) < 24).sum() > 20
    for name, content, sentence in (
        ("a.txt", b"x", "a.txt is neither a PNG or SVG saved here nor a study file"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a.svg holds no study"),
        ("a.yaml", b"", "a.yaml holds no study"),
    ):
        picture.set("dropped", "")
        drop(name, content)
        picture.says(sentence)
        assert picture.get("dropped") == ""
    assert not browser_page.wb_errors


#: Frames a second that a canvas of the same size is cleared in, with nothing drawn on it.
EMPTY = """async (size) => {
    const canvas = document.createElement('canvas');
    canvas.width = canvas.height = size;
    canvas.style.cssText = `position: fixed; top: 0; width: ${size}px; height: ${size}px`;
    document.body.append(canvas);
    const gl = canvas.getContext('webgl2', { alpha: false, antialias: false });
    let frames = 0, on = true;
    const draw = () => {
        gl.clearColor((frames++ % 10) / 10, .5, .5, 1);
        gl.clear(gl.COLOR_BUFFER_BIT);
        if (on) requestAnimationFrame(draw);
    };
    draw();
    await new Promise((done) => setTimeout(done, 600));
    on = false;
    canvas.remove();
    return [frames / 0.6, frames];
}"""

PLAYED = """async (trails) => {
    const root = document.querySelector('.wb-player');
    player.set('view', trails ? {} : { layers: { trails: false } });
    player.set('playing', false);
    player.set('frame', 0);
    player.set('playing', true);
    const from = Number(root.dataset.drawn), start = performance.now();
    await new Promise((done) => setTimeout(done, 600));
    const frames = root.dataset.drawn - from, seconds = (performance.now() - start) / 1000;
    player.set('playing', false);
    return [frames / seconds, frames];
}"""

KEYS = """async (n) => {
    const root = document.querySelector('.wb-player');
    const gl = root.querySelector('canvas').getContext('webgl2');
    const pixel = new Uint8Array(4), times = [];
    player.set('playing', false);
    player.set('frame', 0);
    for (let i = 0; i < n; i++) {
        await new Promise((done) => setTimeout(done, 300));   // at rest again
        const start = performance.now();
        root.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }));
        gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);   // waits for what is drawn
        times.push(performance.now() - start);
    }
    return times;
}"""


@pytest.mark.report
def test_report_drawing_speed(browser_page, chromium, record_property):
    """20 000 particles played, beside an empty canvas of the same size; a key's finished frame.

    Frames a second are of a machine that may be busy with other things; the processor time of a
    frame, of the page and of what emulates a GPU, is not.
    """
    cdp = chromium.new_browser_cdp_session()

    def busy() -> float:
        """Processor time of the browser so far [ms]."""
        processes = cdp.send("SystemInfo.getProcessInfo")["processInfo"]
        return 1000 * sum(one["cpuTime"] for one in processes if one["type"] in ("GPU", "renderer"))

    def measured(script: str, argument) -> str:
        before = busy()
        rate, frames = browser_page.evaluate(script, argument)
        assert rate > 0
        return f"{rate:.0f} frames/s of {(busy() - before) / frames:.0f} ms"

    browser_page.emulate_media(reduced_motion="no-preference")
    Picture(browser_page, offline(explore(ring(32, seeds={"count": 20_000}))))
    size = browser_page.locator(".wb-canvas").bounding_box()["width"]
    empty = measured(EMPTY, size)
    plain, trails = (measured(PLAYED, on) for on in (False, True))
    Picture(browser_page, offline(explore(ring(64, seeds={"count": 1000}))))
    keys = browser_page.evaluate(KEYS, 8)
    assert np.isfinite(keys).all()
    record_property(
        "measured",
        f"playing 20 000 particles on {size:.0f} px, processor time a frame: without trails "
        f"{plain}, with trails {trails}, an empty canvas {empty}; key to finished frame, 1000 "
        f"particles: p50 {statistics.median(keys):.0f} ms, least {min(keys):.0f} ms",
    )
