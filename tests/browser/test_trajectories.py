"""The Trajectories page in a real browser: live, offline, by keyboard, its state in the URL."""

import base64
import json
import statistics
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from browser.pages import COLOURS, DROP, LONG, PLAYER, Page
from conftest import external_requests

import workbench as wb
from workbench.studies.measuring import scalars

#: The beginning of a function of the frame that the player shows.
FRAME = """() => { const find = (root) => root.querySelector('.wb-player')
    ?? [...root.querySelectorAll('*')].map((e) => e.shadowRoot && find(e.shadowRoot)).find(Boolean);
  const frame = () => Number(find(document)?.dataset.frame ?? -1);
  return """


@pytest.fixture
def page(browser_page, port):
    made = Page(browser_page, port)
    yield made
    assert not browser_page.wb_errors
    assert not external_requests(browser_page)


def test_the_front_page_leads_there_and_nothing_leaves_the_machine(browser_page, port):
    """By the server's other name, too; the run opens at pure noise, and plays."""
    browser_page.emulate_media(reduced_motion="no-preference")
    browser_page.goto(f"http://localhost:{port}/")
    browser_page.get_by_role("navigation", name="Pages").get_by_text("Trajectories").click()
    page = Page(browser_page, port, "localhost")
    browser_page.wait_for_selector(f"{PLAYER}[data-drawn]")
    page.shows("Heun, 32 steps")
    browser_page.wait_for_function(FRAME + "0 < frame(); }")
    browser_page.wait_for_selector(f'{PLAYER}[data-frame="32"]')
    assert any(one.startswith(f"ws://localhost:{port}/") for one in browser_page.wb_requests)
    assert not external_requests(browser_page)
    assert not browser_page.wb_errors


def test_keys_step_and_play_and_ask_for_nothing(page):
    """After the run has been sent, time moves in the browser alone."""
    page.open("data=digits&denoiser=Gaussian&grid.steps=12")
    page.shows("digits")
    assert page.frame == 0  # the reader's system asks for no motion
    requests = len(page.page.wb_requests)
    page.page.keyboard.press("End")
    page.page.wait_for_selector(f'{PLAYER}[data-frame="12"]')
    last = page.pixels()
    page.page.keyboard.press("Home")
    page.page.wait_for_selector(f'{PLAYER}[data-frame="0"]')
    first = page.pixels()
    assert first != last
    for expected in (1, 2, 3):
        page.page.keyboard.press("ArrowRight")
        page.page.wait_for_selector(f'{PLAYER}[data-frame="{expected}"]')
    page.page.keyboard.press("ArrowLeft")
    page.page.wait_for_selector(f'{PLAYER}[data-frame="2"]')
    assert page.pixels() not in (first, last)
    page.page.keyboard.press("Space")
    page.page.wait_for_function(FRAME + "2 < frame(); }")
    page.page.keyboard.press("Space")
    page.page.wait_for_timeout(200)
    paused = page.frame
    assert 2 < paused <= 12
    page.page.wait_for_timeout(300)
    assert page.frame == paused
    assert len(page.page.wb_requests) == requests
    page.keep_screenshot("digits")


def test_the_address_is_the_study_and_gives_the_same_arrays(page, tmp_path):
    """Page, address, command line and library: one study, the same bytes."""
    page.open("data=moons&process=RectifiedFlow&sampler=DDIM&sampler.eta=0.5&seeds.count=40")
    page.shows("DDIM (eta 0.5), 32 steps on a log-SNR grid, Rectified flow; two moons as Mixture")
    page.enter("steps", "9")
    page.shows("9 steps")
    study = page.study()
    assert (study.grid.steps, study.sampler.eta, study.seeds.count) == (9, 0.5, 40)
    shown = page.data(tmp_path / "page")
    same = wb.run(study)
    for name in ("x", "denoised", "final"):
        assert shown[name].values.tobytes() == same[name].values.tobytes()
    assert json.loads(shown.attrs["study"]) == study.to_dict()
    study.dump(tmp_path / "study.yaml")
    out = tmp_path / "out.zarr"
    command = ["run", str(tmp_path / "study.yaml"), "-o", str(out)]
    subprocess.run([sys.executable, "-m", "workbench.cli", *command], check=True, timeout=LONG)
    stored = xr.open_zarr(out, consolidated=False).load()
    assert stored["x"].values.tobytes() == shown["x"].values.tobytes()


def test_choosing_brings_the_right_controls_and_back_restores(page):
    page.open("grid.steps=8")
    page.enter("steps", "9")
    page.shows("9 steps")
    page.page.go_back()
    page.shows("8 steps")
    assert page.page.get_by_label("steps", exact=True).input_value() == "8"
    page.page.go_forward()
    page.shows("9 steps")
    page.choose("Sampler", "Euler–Maruyama")
    page.shows("Euler–Maruyama (eta 1)")
    page.enter("eta", "0.25")
    page.shows("Euler–Maruyama (eta 0.25)")
    page.choose("Process", "EDM")
    page.shows("EDM")
    page.enter("sigma max", "10")
    page.choose("Grid", "Karras")
    page.shows("Karras grid")
    assert page.study().process.sigma_max == 10
    assert page.page.get_by_label("beta max").count() == 0


def test_a_gaussian_stands_beside_its_exact_flow(page):
    """The RMS distance on the page is that of the library, and the exact flow is drawn."""
    page.open("data=gaussian&denoiser=Gaussian&grid.steps=10&seeds.count=100")
    explored = wb.studies.explore(page.study())
    page.says(f"RMS distance to the exact flow {float(explored.flow['rms'][-1]):.3g}")
    page.page.keyboard.press("End")
    page.page.get_by_role("button", name="Layers").click()
    with_rings = page.pixels()
    page.page.get_by_text("Exact flow", exact=True).click()
    page.looks_other_than(with_rings)
    page.keep_screenshot("gaussian")
    # What the study measures is said too, and a name that is none beside its control.
    page.page.get_by_text("More", exact=True).click()
    page.enter("lenses", "output,flwo")
    page.says("lenses was 'flwo' (did you mean 'flow'?)")
    page.enter("lenses", "output,flow")
    page.page.wait_for_url(lambda url: "lenses=output,flow&" in url)
    page.says(f"output.w2 {scalars(wb.run(page.study()))['output.w2']:.4g}")


def test_a_nonsense_address_is_answered_in_sentences(page):
    page.open("grid.steps=0&process=VPP&seeds.count=1e99&colour=blue&data=ring&sampler.eta=2")
    page.shows("Heun, 32 steps on a log-SNR grid, VP; ring of Gaussians as Mixture")
    page.says("steps was '0'; it must be a whole number, at least 1 and at most 10000.")
    page.says("Process was 'VPP' (did you mean 'VP'?); it must be one of")
    page.says("a study has no entry 'colour'")
    page.says("sampler Heun has no parameter 'eta'")
    page.enter("steps", "7")
    page.shows("7 steps")


def test_markup_in_an_address_is_shown_as_text(page):
    """A link must not be able to run anything in its reader's page."""
    markup = "<img src=x onerror='window.ran=1'>"
    page.open(urllib.parse.urlencode({"grid.steps": markup, "process": markup, markup: "1"}))
    page.says("steps was")
    page.says("a study has no entry")
    assert page.page.get_by_text("<img src=x").count() >= 3
    assert page.page.locator("img[src=x]").count() == 0
    assert page.page.evaluate("window.ran") is None


def test_bad_values_are_answered_beside_their_controls(page):
    page.open()
    for good, value in zip((32, 5, 6, 7, 8), ("0", "-3", "2.5", "many", ""), strict=True):
        page.enter("steps", value)
        page.says(f"steps was {value!r}; it must be a whole number")
        page.shows(f"{good} steps")  # the last good run stays
        better = max(5, good % 32 + 1)
        page.enter("steps", str(better))
        page.shows(f"{better} steps")
        assert page.page.get_by_text("it must be a whole number").count() == 0
    # Each allowed, and not together.
    page.enter("beta min", "30")
    page.says("beta_max was 20.0; it must be at least beta_min (30.0).")
    page.enter("beta min", "3")
    page.page.wait_for_url(lambda url: "process.beta_min=3.0&" in url)
    page.page.get_by_text("it must be at least beta_min").wait_for(state="detached")


def test_too_large_a_run_is_refused_with_the_largest_that_fits(page):
    page.page.goto(f"{page.home}?data=digits&denoiser=Gaussian&seeds.count=900&grid.steps=2000")
    page.says("samples was 900; with 2001 recorded times it must be at most")


def test_the_exact_truth_of_a_mixture(page):
    """Closed at first; opened it draws, and follows the study."""
    page.open("grid.steps=8")
    page.page.wait_for_timeout(500)
    assert sum(colours > 20 for colours in page.page.evaluate(COLOURS)) == 0
    page.open_section("Exact truth")
    page.says("A skip of all of the run displaces the endpoint by 0.4")
    page.says("2 modes: half of the amplitude at ρ = 1.72 for the first")
    page.draws(5)
    page.keep_screenshot("exact")
    page.enter("radius", "2.8")
    page.says("2 modes: half of the amplitude at ρ = 3.43 for the first")
    page.draws(5)
    page.turn_theme()
    page.page.wait_for_selector(f'{PLAYER}[data-mode="dark"]')
    page.draws(5)


def test_what_is_dropped_on_the_picture_is_opened(page):
    """A picture that was saved here, a study file, and what is none: a sentence, the run stays."""
    page.open("grid.steps=8")
    page.shows("8 steps")
    first = page.study()

    def drop(name: str, content: bytes) -> None:
        page.player.evaluate(DROP, [base64.b64encode(content).decode(), name])

    for kind, steps in (("PNG", 7), ("SVG", 9)):
        page.page.get_by_role("button", name="Export").click()
        with page.page.expect_download() as download:
            page.page.get_by_role("menuitem", name=f"Picture ({kind}").click()
        page.enter("steps", str(steps))
        page.shows(f"{steps} steps")
        drop(download.value.suggested_filename, Path(download.value.path()).read_bytes())
        page.shows("8 steps")
        assert page.study() == first
    study = wb.Study(data="moons", grid={"name": "karras", "steps": 6})
    drop("mine.yaml", study.to_yaml().encode())
    page.shows("6 steps")
    assert page.study() == study
    drop("mine.yaml", b"sampler: Foo")
    page.says("The study that was dropped is not opened: sampler was 'Foo'.")
    assert page.study() == study
    # Into the steps: the states at which the model is evaluated stand between the nodes.
    page.player.focus()
    page.page.keyboard.press("i")
    page.page.locator(".wb-time[aria-valuemax='12']").wait_for()
    page.page.keyboard.press("Home")
    page.page.keyboard.press("ArrowRight")
    page.says("step 1 of 6: predictor")
    page.page.keyboard.press("i")
    page.page.locator(".wb-time[aria-valuemax='6']").wait_for()


def test_progress_cancel_and_replacement(page):
    """Long work says how far it is, stops when asked, and gives way to a newer request."""
    page.open("data=digits&denoiser=Empirical&grid.steps=6")
    page.shows("6 steps")
    page.enter("steps", "1500")
    page.page.get_by_role("button", name="Cancel").wait_for()
    page.says("sampling")
    page.says("s left")
    page.page.get_by_role("button", name="Cancel").click()
    page.says("Cancelled")
    page.shows("6 steps")
    page.enter("steps", "1400")
    page.page.get_by_role("button", name="Cancel").wait_for()
    page.enter("steps", "5")
    page.shows("5 steps")
    page.page.get_by_role("button", name="Cancel").wait_for(state="hidden")


@pytest.mark.report
def test_report_times_of_a_page(page, chromium, record_property):
    """To the first frame, from a control to its picture, from a key to its frame: reported."""
    cdp = chromium.new_browser_cdp_session()

    def busy() -> float:
        """Processor time of the browser so far [s]."""
        return sum(one["cpuTime"] for one in cdp.send("SystemInfo.getProcessInfo")["processInfo"])

    page.page.goto("about:blank")
    before, begun = busy(), time.monotonic()
    page.open("data=ring&seeds.count=1000&grid.steps=64")
    opened, browser = time.monotonic() - begun, busy() - before
    page.shows("64 steps")
    changed = []
    for steps in (62, 64):
        drawn = page.player.get_attribute("data-drawn")
        begun = time.monotonic()
        page.enter("steps", str(steps))
        page.shows(f"{steps} steps")
        page.page.wait_for_selector(f'{PLAYER}:not([data-drawn="{drawn}"])')
        changed.append(time.monotonic() - begun)
    page.player.focus()
    page.page.keyboard.press("Home")
    page.page.wait_for_selector(f'{PLAYER}[data-frame="0"]')
    latencies = []
    for expected in range(1, 13):
        page.page.keyboard.press("ArrowRight")
        page.page.wait_for_selector(f'{PLAYER}[data-frame="{expected}"]')
        latencies.append(page.player.evaluate("e => e.__player.stats.latency"))
    assert all(np.isfinite(latencies))
    p95 = statistics.quantiles(latencies, n=20)[-1]
    record_property(
        "measured",
        f"Trajectories, 1000 particles x 65 nodes: first frame {opened:.2f} s after a navigation "
        f"(processor time of the browser {browser:.2f} s); "
        f"control to new picture p50 {statistics.median(changed):.2f} s; key to frame drawn p50 "
        f"{statistics.median(latencies):.1f} ms, p95 {p95:.1f} ms",
    )
