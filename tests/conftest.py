"""What every test has at hand: random inputs of a known seed, one thread, a real browser."""

import asyncio
import copy
import gc
import hashlib
import os
import random
import runpy
import secrets
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from _pytest.runner import runtestprotocol

# One thread in this process, in the workers and in whatever the tests start: tiny tensors are
# slower on several. It is read when torch and NumPy are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What is freed is kept, here and in every process that is started from here. The file by its path,
# as the package imports torch.
runpy.run_path(str(Path(__file__).parent.parent / "workbench/workers/memory.py"))["keep_freed"]()

# Bytecode is kept, whatever the environment says: without it every process that the tests start
# compiles all that it imports, which takes longer than what it is started for.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# jsonschema, which nbformat imports, would compile a grammar of internationalised addresses: three
# seconds of every process, for a format that no notebook and no study has.
sys.modules.setdefault("rfc3987_syntax", None)

# What is imported and collected stays, half a million objects: looking through them again and again
# for what may go takes a tenth of the time of most tests.
gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 20)


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--process-per-site",  # pages of one server share what has been compiled
    "--enable-unsafe-swiftshader",  # WebGL without a graphics card
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
BROWSER_FIXTURES = {"chromium", "browser_page"}

#: Files whose tests have a browser and a served workbench of their own, in a second process: all
#: of them in one would go on long after everything else is done.
SECOND = {"test_player", "test_samplers", "test_studies", "test_trajectories"}


@pytest.fixture(autouse=True, scope="session")
def own_files(tmp_path_factory):
    """Files that studies name by their content are kept apart from the reader's own."""
    os.environ["WORKBENCH_FILES"] = str(tmp_path_factory.mktemp("files"))


# ---- randomness ----------------------------------------------------------------------------------
#
# One fixed seed unless WORKBENCH_SEED names another. With WORKBENCH_FUZZ=n (`make fuzz RUNS=n`)
# each test runs under n seeds that follow each other, from a fresh one on. All of its runs come at
# once, in one process that has imported everything; a test that draws nothing runs once.

#: Seed of `make test`.
FIXED = 0

#: Whether a test has drawn from a generator of the process.
DREW = pytest.StashKey[bool]()


def _whole(name: str, least: int) -> int:
    given = os.environ[name]
    if not given.isdecimal() or int(given) < least:
        raise pytest.UsageError(f"{name} is {given!r}; it must be a whole number, {least} or more.")
    return int(given)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Choose the seed of this run once; the workers of pytest-xdist inherit it."""
    os.environ.setdefault("WORKBENCH_FUZZ", "0")
    fuzzing = _whole("WORKBENCH_FUZZ", 0)
    os.environ.setdefault("WORKBENCH_SEED", str(secrets.randbelow(2**31) if fuzzing else FIXED))
    seed = _whole("WORKBENCH_SEED", 0)
    if config.pluginmanager.hasplugin("hypothesispytest"):
        import hypothesis

        hypothesis.settings.register_profile(
            "workbench",
            deadline=None,
            database=None,  # examples that failed once, on this machine alone
            print_blob=True,
            suppress_health_check=[hypothesis.HealthCheck.too_slow],  # a clock's verdict
        )
        hypothesis.settings.load_profile("workbench")
        if config.getoption("hypothesis_seed", None) is None:
            config.option.hypothesis_seed = seed


def pytest_report_header(config):
    runs, seed = (os.environ[name] for name in ("WORKBENCH_FUZZ", "WORKBENCH_SEED"))
    fuzzing = f", {runs} runs from it on" if runs != "0" else ""
    return f"workbench seed: {seed}{fuzzing}"


def pytest_terminal_summary(terminalreporter, exitstatus):
    """What tests measured, by `record_property("measured", ...)`; what a fuzz saw failing."""
    said = {"measured": [], "fuzz": []}
    kinds = ("passed", "failed", "error")
    for report in (one for kind in kinds for one in terminalreporter.getreports(kind)):
        for name, text in getattr(report, "user_properties", ()):
            if name in said and (name == "fuzz" or (report.passed and report.when == "call")):
                said[name].append(text)
    for text in said["measured"]:
        terminalreporter.write_line(f"measured: {text}")
    if os.environ["WORKBENCH_FUZZ"] != "0":
        terminalreporter.section("fuzz")
        for text in dict.fromkeys(said["fuzz"]) or ["no test failed under any seed"]:
            terminalreporter.write_line(text)
    elif exitstatus == pytest.ExitCode.TESTS_FAILED:
        terminalreporter.write_line(pytest_report_header(terminalreporter.config))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """In a fuzz: all runs of a test, reported as one; it fails if one of them does."""
    runs = int(os.environ["WORKBENCH_FUZZ"])
    if not runs:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _fuzzed(item, nextitem, runs):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _fuzzed(item, nextitem, runs: int) -> list:
    """The reports of the first run that failed, otherwise of the last."""
    import hypothesis.core

    first, failed, told = int(os.environ["WORKBENCH_SEED"]), [], None
    seeded = {"seed", "generator"} & set(item.fixturenames)
    seeded = seeded or getattr(item.function, "is_hypothesis_test", False)
    for seed in range(first, first + runs):
        os.environ["WORKBENCH_SEED"] = str(seed)
        hypothesis.core.global_force_seed = seed
        # A neighbour in the same module follows, so that what the module shares stays.
        reports = runtestprotocol(item, log=False, nextitem=copy.copy(item))
        if any(report.failed for report in reports):
            failed.append(seed)
            told = told if len(failed) > 1 else reports
        if not (seeded or item.stash.get(DREW, False)):
            break
    os.environ["WORKBENCH_SEED"] = str(first)
    item.session._setupstate.teardown_exact(nextitem)
    if failed:
        seeds = ", ".join(map(str, failed[:5])) + (", ..." if len(failed) > 5 else "")
        line = f"{item.nodeid} failed in {len(failed)} of {seed - first + 1} runs: SEED={seeds}"
        for report in told:
            report.user_properties.append(("fuzz", line))
    return told or reports


def _seed_of(node) -> int:
    """A test's own seed, from the run's seed and the test's name; the same in every worker."""
    path, _, name = node.location  # unlike nodeid, never altered by pytest-xdist
    digest = hashlib.sha256(f"{os.environ['WORKBENCH_SEED']}:{path}::{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@pytest.fixture
def seed(request) -> int:
    """This test's own seed."""
    return _seed_of(request.node)


@pytest.fixture
def generator(seed):
    """A torch.Generator on the CPU, seeded for this test alone."""
    import torch

    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _same_start(request):
    """Draws without a generator have this test's seed too; the default dtype is float32."""
    import numpy
    import torch

    def states() -> tuple:
        _, words, place, *_ = numpy.random.get_state()
        torchs = torch.get_rng_state().numpy()
        return random.getstate(), words.tobytes(), place, torchs.tobytes()

    seed = _seed_of(request.node)
    torch.set_default_dtype(torch.float32)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed looks for cards, at some cost
    if os.environ["WORKBENCH_FUZZ"] == "0":
        yield
        return
    before = states()
    yield
    request.node.stash[DREW] = states() != before


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


# ---- browser -------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config, items):
    """Tests that share something costly run in one process, where it is made once.

    What only measures, and has no verdict, runs where it is asked for: `pytest -k report`.

    A test that asks for the browser is marked `browser` and runs in one of the two browser groups.
    Those that share a fixture of their file run beside each other, with the browser if one of them
    does. Groups begin in this order, which is why pytest-xdist must not reorder them.
    """
    if "report" not in config.getoption("keyword"):
        measuring = [item for item in items if item.get_closest_marker("report")]
        items[:] = [item for item in items if item not in set(measuring)]
        config.hook.pytest_deselected(items=measuring)
    seeing = {item for item in items if BROWSER_FIXTURES & set(getattr(item, "fixturenames", ()))}
    for item in seeing:
        item.add_marker("browser")
    places, turn = {item.path for item in seeing if _shares(item)}, {}
    for item in items:
        turn[item] = 2
        if item in seeing or (_shares(item) and item.path in places):
            group, turn[item] = "browser-2" if item.path.stem in SECOND else "browser", 0
            item.add_marker(pytest.mark.xdist_group(group))
        elif _shares(item):
            turn[item] = 1
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=turn.get)  # what lasts longest begins first, and what is alone fills the end


def _shares(item) -> bool:
    """Whether a test uses what is made once for its file."""
    fixtures = getattr(item, "_fixtureinfo", None)
    known = fixtures.name2fixturedefs.values() if fixtures else ()
    return any(one.scope == "module" for each in known for one in each)


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


@pytest.fixture(scope="session")
def reader(chromium):
    """What all pages are opened in, one after the other, so that the scripts they share are
    fetched and compiled once: most of the time that opening one takes."""
    size = {"width": 1280, "height": 900}
    context = chromium.new_context(viewport=size, reduced_motion="reduce")
    context.set_default_timeout(300_000)  # against hanging for ever; speed is no test's verdict
    context.wb_origins, context.wb_parked = set(), []
    yield context
    context.close()


@pytest.fixture
def browser_page(reader):
    """A new page of a reader whose system asks for no motion: nothing plays by itself. Nothing that
    an earlier page has stored is there.

    `page.wb_requests` lists the address of every request and WebSocket it makes, `page.wb_errors`
    every error on its console and every exception that nobody caught.
    """
    page = reader.new_page()
    forget = reader.new_cdp_session(page)
    for origin in reader.wb_origins:
        forget.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"})
    forget.detach()
    page.wb_requests, page.wb_errors = [], []

    def asked(request) -> None:
        page.wb_requests.append(request.url)

    reader.on("request", asked)
    page.on("websocket", lambda socket: page.wb_requests.append(socket.url))
    page.on("pageerror", lambda error: page.wb_errors.append(f"uncaught: {error}"))
    page.on(
        "console",
        lambda said: (
            page.wb_errors.append(f"console: {said.text}") if said.type == "error" else None
        ),
    )
    yield page
    reader.remove_listener("request", asked)
    reader.clear_permissions()
    parts = [urlsplit(address) for address in page.wb_requests]
    reader.wb_origins |= {f"http://{one.netloc}" for one in parts if one.scheme == "http"}
    for one in reader.pages:
        if one not in reader.wb_parked:
            one.close()


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
