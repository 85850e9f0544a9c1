"""The frame of the pages in a real browser: it fits every window, and works without a mouse."""

import time

import pytest
from browser.pages import PLAYER, Gate, Page
from conftest import external_requests

import workbench as wb

SIZES = [
    (1920, 1080),
    (1366, 768),
    (1000, 700),
    (420, 800),
]

#: Opens each tab, then closes and opens form and panel, and says what is wrong with what is seen.
WALK = """async () => {
  const roots = (root) => [root, ...[...root.querySelectorAll('*')]
    .flatMap((e) => (e.shadowRoot ? roots(e.shadowRoot) : []))];
  const box = (e) => e.getBoundingClientRect();
  const seen = (e) => e && e.checkVisibility({ visibilityProperty: true }) && box(e).width > 0;
  const meet = (a, b) => a.left < b.right - 0.5 && b.left < a.right - 0.5
    && a.top < b.bottom - 0.5 && b.top < a.bottom - 0.5;
  const within = (a, b) => a.left >= b.left - 0.5 && a.right <= b.right + 0.5
    && a.top >= b.top - 0.5 && a.bottom <= b.bottom + 0.5;
  const PARTS = ['.wb-bar-top', '.wb-form', '.wb-status', '.wb-picture', '.wb-split', '.wb-dock'];
  const WIDE = ['.wb-bar-top', '.wb-actions', '.wb-pages', '.wb-form > .wb-scroll',
    '.wb-picture.wb-scroll', '.wb-panel:not([hidden])'];
  function wrong() {
    const said = [], say = (text) => said.push(text), every = roots(document);
    const first = (name) => {
      for (const root of every) if (root.querySelector(name)) return root.querySelector(name);
    };
    const screen = { left: 0, top: 0, right: innerWidth, bottom: innerHeight };
    const parts = PARTS.map((name) => [name, document.querySelector(name)])
      .filter(([, e]) => seen(e));
    parts.forEach(([name, e], i) => {
      if (!within(box(e), screen)) say(`${name} leaves the window`);
      for (const [other, f] of parts.slice(i + 1))
        if (meet(box(e), box(f))) say(`${name} meets ${other}`);
    });
    const page = document.scrollingElement;
    if (page.scrollHeight > innerHeight || page.scrollWidth > innerWidth) say('the page scrolls');
    for (const name of WIDE) for (const e of document.querySelectorAll(name))
      if (seen(e) && e.scrollWidth > e.clientWidth + 1) say(`${name} is cut`);
    const panel = document.querySelector('.wb-panel:not([hidden])');
    if (seen(panel)) for (const root of roots(panel))
      for (const figure of root.querySelectorAll('.bk-Figure'))
        if (box(figure).right > box(panel).right + 1) say('a figure leaves its panel');
    if (!first('.wb-player[data-drawn]')) return said;
    const picture = box(document.querySelector('.wb-picture')), stage = first('.wb-stage');
    for (const name of ['.wb-stage', '.wb-time', '.wb-bar']) {
      const e = first(name);
      if (!within(box(e), picture)) say(`${name} leaves the picture`);
      if (e !== stage && meet(box(e), box(stage))) say(`${name} meets the stage`);
    }
    const play = first('.wb-play'), { left, top, width, height } = box(play);
    const at = [left + width / 2, top + height / 2];
    let hit = document.elementFromPoint(...at), next = hit;
    while ((next = hit?.shadowRoot?.elementFromPoint(...at)) && next !== hit) hit = next;
    if (!play.contains(hit)) say(`a click on Play hits ${hit?.className || hit?.tagName}`);
    return said;
  }
  const told = {}, wait = (ms) => new Promise((go) => setTimeout(go, ms));
  // What is still being laid out is looked at again, as its reader would.
  const look = async (where) => {
    let said = [];
    for (let tries = 0; tries < 60; tries++) {
      await wait(40);
      await new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)));
      said = wrong();
      if (!said.length) return;
    }
    told[where] = said;
  };
  for (const tab of document.querySelectorAll('[role=tab]')) {
    tab.click();
    await look(tab.textContent);
  }
  const turn = (act) => document.querySelector(`[data-act=${act}]`)?.click();
  turn('form');
  await look('the form turned');
  turn('dock');
  await look('form and panel turned');
  turn('form');
  turn('dock');
  return told;
}"""

#: Pages, what they say once their picture is there.
PAGES = {
    "trajectories": ("grid.steps=8&seeds.count=64", "8 steps"),
    "samplers": ("samplers=DDIM,Heun&modes=16&most=32", "evaluations:"),
    "gap": ("data=gaussian&denoiser=Gaussian", "ODE and SDE"),
    "gauge": ("data=gaussian&denoiser=Gaussian&networks=none", "Of 2 dimensions the data show"),
    "frequency": ("data=digits&denoiser=Gaussian&grid.steps=12&seeds.count=32", "Half of the"),
    "seeds": (
        "data=digits&denoiser=Conditional&grid.steps=6&seeds.count=16&frame=2&view=maps",
        "Within classes",
    ),
    "networks": ("open=ring", "a stored network"),
    "studies": ("", "look again"),
    "": ("", "Trajectories"),
}


#: What axe-core reports: to list what is right, too, takes it as long again.
ONLY = {"resultTypes": ["violations"]}

#: How many dots of a panel of the page "Gap" have the colour of what is brushed.
LIT = """(panel) => {
  const g = panel.getContext('2d'), { data } = g.getImageData(0, 0, panel.width, panel.height);
  let count = 0;
  for (let i = 0; i < data.length; i += 4) {
    const near = (k, value) => Math.abs(data[i + k] - value) < 4;
    count += near(0, 204) && near(1, 121) && near(2, 167) && data[i + 3] > 90;
  }
  return count;
}"""


def brush_one_panel(page: "Bench") -> None:
    """What is brushed on the flow's panel is lit on all others, until Escape."""
    player = page.page.locator(f"{PLAYER}[data-lit]")
    names = ("Residual of", "ODE ", "SDE ", "Truth", "Residual over")
    panels = {name: player.locator(f'canvas[aria-label^="{name}"]') for name in names}
    lit = lambda: {name: panel.evaluate(LIT) for name, panel in panels.items()}  # noqa: E731
    assert not any(lit().values())
    box, mouse = panels["ODE "].bounding_box(), page.page.mouse
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse.move(*middle)
    mouse.down()
    mouse.move(middle[0] + 40, middle[1] - 40, steps=4)
    mouse.up()
    count = int(player.get_attribute("data-lit"))
    assert 3 < count < 250 and all(lit().values()), (count, lit())
    player.focus()
    page.press("Escape")
    page.page.wait_for_selector(f'{PLAYER}[data-lit="0"]')
    assert not any(lit().values())


class Bench(Page):
    """A page as its user sees it."""

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def focused(self) -> str:
        """What has the focus: its label, its title or its text."""
        return self.page.evaluate(
            """() => { let one = document.activeElement;
              while (one?.shadowRoot?.activeElement) one = one.shadowRoot.activeElement;
              return one?.getAttribute('aria-label') || one?.labels?.[0]?.textContent
                || one?.textContent || ''; }"""
        )


@pytest.fixture
def page(browser_page, port):
    made = Bench(browser_page, port)
    yield made
    assert not browser_page.wb_errors
    assert not external_requests(browser_page)


def link_and_back(page):
    """The link's own view and moment, back to what the page opens with, and a link to that."""
    page.page.wait_for_selector(f'{PLAYER}[data-view="maps"][data-drawn="2"]')
    page.player.press("V")
    page.page.wait_for_selector(f'{PLAYER}[data-view="seeds"][data-drawn="2"]')
    page.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.press("s")
    page.page.get_by_role("menuitem", name="Copy link").press("Enter")
    page.says("Link copied")
    link = page.page.evaluate("() => navigator.clipboard.readText()")
    assert "&frame=2&view=seeds" in link


def brush_samples(page):
    """Samples with outlying times: by the mouse, and by a key."""
    place = page.page.locator(".wb-plot").nth(1).bounding_box()
    page.page.mouse.move(place["x"] + 70, place["y"] + 9)
    page.page.mouse.down()
    page.page.mouse.move(place["x"] + place["width"] - 20, place["y"] + 30, steps=3)
    page.page.mouse.up()
    page.says("32 chosen samples, band 2")
    page.page.locator(".wb-plot").first.press("ArrowUp")
    page.page.get_by_role("button", name="Latest 8").press("Enter")
    page.says("8 chosen samples, band 3-4")


#: What is tried on a page before it is looked at.
USED = {"seeds": link_and_back, "frequency": brush_samples, "gap": brush_one_panel}


@pytest.mark.parametrize("slug", PAGES)
def test_it_fits_every_window_and_axe_finds_nothing_serious(page, port, slug):
    """Whatever is open, at every size; names, roles and contrasts by axe-core, light and dark."""
    query, words = PAGES[slug]
    page.page.goto(f"http://127.0.0.1:{port}/{slug}?{query}")
    page.says(words)
    USED.get(slug, lambda page: None)(page)
    wrong = {}
    for width, height in SIZES:
        page.page.set_viewport_size({"width": width, "height": height})
        if said := page.page.evaluate(WALK):
            wrong[width, height] = said
        page.keep_screenshot(f"{slug or 'home'}-{width}")
    assert not wrong
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.page.set_viewport_size({"width": 1366, "height": 768})
    for tab in (1, page.page.get_by_role("tab").count()):
        page.press(str(tab))
        page.page.wait_for_timeout(300)
        for one in axe.run(page.page, options=ONLY).response["violations"]:
            if one["impact"] in ("serious", "critical"):
                wrong[tab, one["id"]] = [node["html"] for node in one["nodes"]][:3]
        page.turn_theme()
    assert not wrong


def test_a_study_is_changed_by_keys_alone(page):
    """From the top of the page: Play in a few tabs, drop-downs, a number, the sheet of keys."""
    page.open("grid.steps=8&seeds.count=64")
    for _ in range(6):
        page.press("Tab")
        if "Skip" in page.focused():
            break
    page.press("Enter")
    assert page.focused() in ("Play", "Pause")
    assert page.page.locator("h1").all_text_contents() == ["Trajectories"]
    page.press("?")
    page.page.get_by_role("heading", name="Keys").wait_for()
    page.press("Escape")
    page.page.get_by_role("heading", name="Keys").wait_for(state="hidden")
    # The chips of the bar lead to the form's sections; a letter chooses in a drop-down.
    chips = page.page.get_by_role("toolbar", name="On the bench").get_by_role("button")
    # One letter that one choice alone begins with: of several the browser forgets the first ones
    # where it is slow.
    chosen = {"data": "t", "denoiser": "e", "process": "c", "sampler": "u", "grid": "u"}
    for i, letter in enumerate(chosen.values()):
        chips.first.focus()
        page.press(*["ArrowRight"] * i, "Enter")
        page.page.wait_for_timeout(50)
        page.press(letter)
        page.page.wait_for_timeout(1100)  # a drop-down forgets what was typed before
    page.press("/")
    page.page.keyboard.type("steps")
    page.press("Tab")
    assert page.focused() == "steps"
    page.press("ArrowUp", "ArrowUp", "Enter")
    page.shows("10 steps")
    study = page.study()
    names = [getattr(study, name).name for name in chosen]
    assert names == ["moons", "Empirical", "Cosine", "UniPC", "uniform"]
    assert study.grid.steps == 10
    # What goes to the other pages is this study.
    link = page.page.get_by_role("link", name="Samplers").get_attribute("href")
    assert wb.Study.from_query(link.partition("?")[2]) == study


def test_b_is_pinned_beside_a_and_travels_in_the_link(page):
    page.open("grid.steps=8&seeds.count=64")
    page.page.locator("body").press("p")
    page.says("are the same study")
    page.enter("steps", "9")
    page.says("steps 9 → 8")
    page.page.wait_for_url(lambda url: "pin=" in url and "grid.steps=9" in url)
    link = page.page.url
    page.page.get_by_role("button", name="Swap").click()
    page.shows("8 steps")
    page.page.get_by_role("button", name="Unpin", exact=True).click()
    page.page.wait_for_url(lambda url: "pin=" not in url)
    page.page.goto(link)
    page.says("steps 9 → 8")


def test_a_link_holds_the_moment_and_a_file_plays_it_offline(page, tmp_path):
    page.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.open("grid.steps=8&seeds.count=64")
    page.open_section("Through a lens")
    page.player.focus()
    page.press("Home", "ArrowRight", "ArrowRight", "ArrowRight")
    page.page.wait_for_selector(f'{PLAYER}[data-frame="3"]')
    page.page.wait_for_timeout(400)  # the session is told when the motion ends
    page.open_section("What is shown")
    for letter in "ρσ":
        symbol = page.page.get_by_role("tabpanel").locator(f"[data-symbol={letter}]").first
        symbol.hover()
        assert f"; now {letter} = " in symbol.get_attribute("title")
    page.open_section("Through a lens")
    page.press("s")
    page.page.get_by_role("menuitem", name="Copy link").press("Enter")
    page.says("Link copied")
    link = page.page.evaluate("() => navigator.clipboard.readText()")
    page.page.goto(link)
    page.page.wait_for_selector(f'{PLAYER}[data-frame="3"]')
    assert page.page.get_by_role("tab", name="Through a lens").get_attribute("aria-selected")
    page.press("e")
    with page.page.expect_download() as download:
        page.page.get_by_role("menuitem", name="Player (HTML").press("Enter")
    download.value.save_as(tmp_path / "run.html")
    page.page.goto(f"file://{tmp_path}/run.html")
    page.page.wait_for_selector(f"{PLAYER}[data-drawn]")
    page.page.wb_requests.remove(page.page.url)  # the file itself: it asks for nothing else


def test_light_and_dark_follow_the_system_until_chosen(page):
    page.page.emulate_media(color_scheme="dark")
    page.open("data=gaussian&denoiser=Gaussian&grid.steps=4&seeds.count=16")
    page.page.wait_for_selector(f'{PLAYER}[data-mode="dark"]')
    page.page.emulate_media(color_scheme="light")
    page.page.wait_for_selector(f'{PLAYER}[data-mode="light"]')
    page.turn_theme()
    page.page.wait_for_selector(f'{PLAYER}[data-mode="dark"]')
    page.page.reload()
    page.page.wait_for_selector(f'{PLAYER}[data-mode="dark"]')


def test_a_lost_server_is_said_and_the_page_comes_back(browser_page, port, gate, record_property):
    """With the server the page comes back, with the study of its address."""
    with Gate(gate, port):
        page = Bench(browser_page, gate).open("grid.steps=6&seeds.count=16")
        page.shows("6 steps")
        page.enter("steps", "7")
        page.shows("7 steps")
    lost = time.monotonic()
    browser_page.get_by_role("alert").get_by_text("does not answer").wait_for()
    seconds = time.monotonic() - lost
    record_property("measured", f"a lost server is said after {seconds:.1f} s (goal: 5)")
    with Gate(gate, port):
        browser_page.get_by_text("does not answer").wait_for(state="hidden")
        page.shows("7 steps")
