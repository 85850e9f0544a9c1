"""What every test has at hand: fresh but repeatable random inputs, one thread, a real browser."""

import asyncio
import hashlib
import os
import random
import secrets
import shutil
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

# One thread in this process, in the workers and in whatever the tests start: tiny tensors are
# slower on several. It is read when torch and NumPy are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",  # WebGL without a graphics card
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
BROWSER_FIXTURES = {"chromium", "browser_page"}


@pytest.fixture(autouse=True, scope="session")
def own_files(tmp_path_factory):
    """Files that studies name by their content are kept apart from the reader's own."""
    os.environ["WORKBENCH_FILES"] = str(tmp_path_factory.mktemp("files"))


# ---- randomness ----------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Choose the seed of this run once; the workers of pytest-xdist inherit it."""
    given = os.environ.setdefault("WORKBENCH_SEED", str(secrets.randbelow(2**31)))
    if not given.isdecimal():
        raise pytest.UsageError(
            f"WORKBENCH_SEED is {given!r}; it must be a whole number, 0 or more."
        )
    if config.pluginmanager.hasplugin("hypothesispytest"):
        import hypothesis

        hypothesis.settings.register_profile("workbench", deadline=None, print_blob=True)
        hypothesis.settings.load_profile("workbench")
        if config.getoption("hypothesis_seed", None) is None:
            config.option.hypothesis_seed = given


def seed_line() -> str:
    seed = os.environ["WORKBENCH_SEED"]
    return f"workbench seed: {seed}; repeat with WORKBENCH_SEED={seed}"


def pytest_report_header(config):
    return seed_line()


def pytest_terminal_summary(terminalreporter, exitstatus):
    """What tests measured, by `record_property("measured", ...)`; the seed after a failure."""
    for report in terminalreporter.getreports("passed"):
        for name, text in getattr(report, "user_properties", ()):
            if name == "measured" and report.when == "call":
                terminalreporter.write_line(f"measured: {text}")
    if exitstatus == pytest.ExitCode.TESTS_FAILED:
        terminalreporter.write_line(seed_line())


@pytest.fixture(scope="session")
def rng_seed() -> int:
    """The seed of this run: WORKBENCH_SEED, or a fresh one."""
    return int(os.environ["WORKBENCH_SEED"])


@pytest.fixture
def seed(request, rng_seed) -> int:
    """This test's own seed, from the run's seed and the test's name; the same in every worker."""
    path, _, name = request.node.location  # unlike nodeid, never altered by pytest-xdist
    digest = hashlib.sha256(f"{rng_seed}:{path}::{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@pytest.fixture
def generator(seed):
    """A torch.Generator on the CPU, seeded for this test alone."""
    import torch

    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _same_start(seed):
    """Draws without a generator are fresh and repeatable too; the default dtype is float32."""
    import numpy
    import torch

    torch.set_default_dtype(torch.float32)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


# ---- browser -------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """A test that asks for the browser is marked `browser` and runs in the one browser group."""
    for item in items:
        if BROWSER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("browser")
            item.add_marker(pytest.mark.xdist_group("browser"))


@contextmanager
def _no_running_loop(item):
    """Hide the event loop that Playwright keeps running here from tests without a browser.

    With it in sight, `asyncio.run` would refuse in every test that follows a browser test.
    """
    loop = asyncio._get_running_loop()
    if loop is None or item.get_closest_marker("browser"):
        yield
        return
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    with _no_running_loop(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with _no_running_loop(item):
        return (yield)


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium driven by Playwright: the system's own, nothing is downloaded."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        message = (
            "No Chromium on the PATH: install one (on Debian and Ubuntu: apt install chromium)."
        )
        if os.environ.get("WORKBENCH_REQUIRE_BROWSER"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)

    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(BROWSER_ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def browser_page(chromium):
    """A new page in a fresh context.

    `page.wb_requests` lists the address of every request and WebSocket it makes, `page.wb_errors`
    every error on its console and every exception that nobody caught.
    """
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(30_000)
    page = context.new_page()
    page.wb_requests, page.wb_errors = [], []
    context.on("request", lambda request: page.wb_requests.append(request.url))
    page.on("websocket", lambda socket: page.wb_requests.append(socket.url))
    page.on("pageerror", lambda error: page.wb_errors.append(f"uncaught: {error}"))
    page.on(
        "console",
        lambda said: (
            page.wb_errors.append(f"console: {said.text}") if said.type == "error" else None
        ),
    )
    yield page
    context.close()


def external_requests(page) -> list[str]:
    """The requests of a `browser_page` that left this machine."""

    def is_local(address: str) -> bool:
        parts = urlsplit(address)
        return parts.scheme in {"data", "blob", "about"} or parts.hostname in {
            "localhost",
            "127.0.0.1",
        }

    return [address for address in page.wb_requests if not is_local(address)]


@pytest.fixture(name="external_requests", scope="session")
def _external_requests():
    """The function of that name: `external_requests(page) == []` for a page that works offline."""
    return external_requests
