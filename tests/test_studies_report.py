"""Notebooks executed side by side, and what the report says of each."""

import base64
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from importlib.util import find_spec

import psutil
import pytest

from workbench.cli import main
from workbench.studies import StudyError
from workbench.studies.execution import offline, to_html
from workbench.studies.report import Outcome, report, values_of

if not find_spec("papermill"):  # importing it takes seconds
    pytest.skip("needs papermill: pip install -e '.[notebooks]'", allow_module_level=True)


def _png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    row = b"\0" + b"\x20\x60\xb0" * 64
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 40, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(row * 40)) + chunk(b"IEND", b"")
    )


PNG = base64.b64encode(_png()).decode()
PICTURE = f"import base64\nfrom IPython.display import Image\nImage(base64.b64decode('{PNG}'))"


def notebook(path, *sources, parameters="steps = 3\nrate = 0.5\n", title="A title & more"):
    """A notebook of cells of code, the first of them with parameters."""
    code = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    tagged = {**code, "metadata": {"tags": ["parameters"]}, "source": parameters}
    heading = {"cell_type": "markdown", "metadata": {}, "source": f"# {title}\n\n$x^2$"}
    cells = [heading, tagged, *({**code, "source": source} for source in sources)]
    for number, cell in enumerate(cells):
        cell["id"] = str(number)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    content = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report on a notebook that runs, one that fails and one whose kernel dies."""
    folder = tmp_path_factory.mktemp("report")
    books = [
        notebook(folder / "good.ipynb", "print('steps are', steps, rate)", PICTURE),
        notebook(
            folder / "bad.ipynb",
            "label = 'fine'",
            "# the wrong cell\nraise RuntimeError('<b>not</b> ' + label)",
            "print('never')",
            parameters="label = ''\n",
        ),
        notebook(folder / "dead.ipynb", "import os\nos._exit(3)"),
    ]
    said = []
    outcomes = report(books, {"steps": 8}, folder / "site", 240.0, 3, on_done=said.append)
    assert sorted(map(str, said)) == sorted(map(str, outcomes))
    return folder / "site", {outcome.name: outcome for outcome in outcomes}


def test_each_notebook_is_executed_with_the_parameters_it_declares(made):
    site, found = made
    assert [found[name].ok for name in ("good", "bad", "dead")] == [True, False, False]
    assert (found["good"].parameters, found["bad"].parameters) == ({"steps": 8}, {})
    assert found["good"].title == "A title & more" and found["good"].seconds > 0
    assert found["good"].figure == f"data:image/png;base64,{PNG}"
    text = json.loads((site / "good.ipynb").read_text())["cells"][3]["outputs"][0]["text"]
    assert "".join(text) == "steps are 8 0.5\n"
    names = {f"{name}.{end}" for name in found for end in ("ipynb", "html")}
    assert {path.name for path in site.iterdir()} == {"index.html"} | names


def test_a_failure_says_which_cell_with_what_text_and_why(made):
    _, found = made
    bad = found["bad"]
    assert (bad.cell, bad.source.splitlines()[0]) == ("In [3]", "# the wrong cell")
    assert bad.error == "RuntimeError: <b>not</b> fine" and "\x1b" not in bad.traceback
    assert "RuntimeError" in bad.traceback
    assert str(bad).startswith("bad: failed in In [3] after ")
    assert found["dead"].source == "import os\nos._exit(3)"
    assert "died" in found["dead"].error.lower()


@pytest.mark.parametrize(("deaths", "whole"), [(2, True), (3, False)])
def test_a_kernel_that_dies_before_it_begins_is_started_again(deaths, whole, tmp_path, monkeypatch):
    """Twice: its ports may have been taken by another meanwhile."""
    startup = tmp_path / "profile_default" / "startup"
    startup.mkdir(parents=True)
    count = f"import os, pathlib\nmarks = pathlib.Path({str(tmp_path)!r})\n"
    die = "n = len(list(marks.glob('*.mark')))\n(marks / f'{n}.mark').touch()\n"
    (startup / "00.py").write_text(f"{count}{die}if n < {deaths}:\n    os._exit(1)\n")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    (outcome,) = report(
        [notebook(tmp_path / "one.ipynb", "print(1)")], {}, tmp_path / "site", 240.0
    )
    assert outcome.ok is whole and len(list(tmp_path.glob("*.mark"))) == 3
    assert whole or "died before" in outcome.error


def test_the_pages_ask_for_nothing_and_fit_a_phone(made, browser_page):
    site, _ = made
    for name in ("good", "bad", "index"):
        browser_page.goto((site / f"{name}.html").as_uri())
    asked = [url for url in browser_page.wb_requests if not url.startswith(("file:", "data:"))]
    assert asked == []
    assert browser_page.wb_errors == []
    assert browser_page.locator("article").count() == 3
    first = browser_page.locator("article").first
    assert "failed" in first.inner_text() and "<b>not</b> fine" in first.inner_text()
    assert "# the wrong cell" in first.locator("pre").first.inner_text()
    good = browser_page.locator("article.ok")
    assert "steps" in good.locator("dl").inner_text() and "8" in good.locator("dd").inner_text()
    assert good.locator("img").evaluate("image => image.naturalWidth") == 64
    browser_page.set_viewport_size({"width": 360, "height": 700})
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 360
    paper = "getComputedStyle(document.body).backgroundColor"
    light = browser_page.evaluate(paper)
    browser_page.emulate_media(color_scheme="dark")
    assert browser_page.evaluate(paper) != light
    good.get_by_text("Page").click()
    assert "good.html" in browser_page.url


def gone(pids, seconds=300.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(psutil.pid_exists(p) and psutil.Process(p).status() != "zombie" for p in pids):
            return True
        time.sleep(0.1)
    return False


LINGER = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open("pids.partial", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename("pids.partial", "pids")
child.wait()
"""


def test_what_takes_too_long_is_stopped_with_all_that_it_started(tmp_path, monkeypatch):
    class Clock:
        """An hour passes as soon as the cell is at work, however slow this machine is."""

        def monotonic(real=time.monotonic):
            return real() + 3600.0 * (tmp_path / "pids").exists()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("workbench.studies.report.time", Clock)
    slow = notebook(tmp_path / "slow.ipynb", "before = 1", LINGER)
    (found,) = report([slow], {}, tmp_path / "site", timeout=3000.0)
    kernel, child = map(int, (tmp_path / "pids").read_text().split())
    assert gone([kernel, child])
    assert (found.ok, found.cell, found.source) == (False, "In [3]", LINGER)
    assert found.error == "it was not done after 3000 s and was stopped."
    assert "not done after 3000 s" in (tmp_path / "site" / "index.html").read_text()


@pytest.mark.parametrize("how", [signal.SIGKILL])
def test_a_report_that_is_killed_leaves_no_kernel(how, tmp_path):
    notebook(tmp_path / "slow.ipynb", LINGER)
    command = [sys.executable, "-m", main.__module__, "report", "slow.ipynb", "-o", "site"]
    running = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 300
        while not (tmp_path / "pids").exists():
            assert time.monotonic() < until and running.poll() is None
            time.sleep(0.1)
    finally:
        running.send_signal(how)
        running.wait(300)
    assert gone(map(int, (tmp_path / "pids").read_text().split()))
    assert running.returncode != 0 and not (tmp_path / "site" / "index.html").exists()


def test_values_are_read_as_yaml():
    texts = {"a": "8", "b": "0.5", "c": "1e-3", "d": "true", "e": "Heun", "f": "", "g": "null"}
    more = {"h": "{sampler.eta: 0.5}", "i": "[1, 2]", "j": "2026-01-01", "k": "'8'"}
    assert values_of(texts | more) == {
        "a": 8, "b": 0.5, "c": 0.001, "d": True, "e": "Heun", "f": "", "g": None,
        "h": {"sampler.eta": 0.5}, "i": [1, 2], "j": "2026-01-01", "k": "8",
    }  # fmt: skip
    with pytest.raises(StudyError, match=r"the parameter x was '!!python/name:os.system'"):
        values_of({"x": "!!python/name:os.system"})


@pytest.mark.parametrize(
    ("books", "options", "sentence"),
    [
        (["trajectory"], {}, r"no notebook trajectory \(did you mean 'trajectories'\?\); the pack"),
        (["none.ipynb"], {}, r"there is no notebook none.ipynb; the package has .*exact, "),
        (["not.ipynb"], {}, r"not\.ipynb is not a notebook: "),
        (["good"], {"parameters": {"step": 1}},
         r"no notebook declares the parameter 'step' \(did you mean 'steps'\?\); declared are "),
        ([], {"parameters": {"sampler.eta": 1}}, r"sampler Heun has no parameter 'eta'; its par"),
        (["good"], {"timeout": 0}, r"--timeout was 0; it must be seconds above 0\."),
        (["good"], {"jobs": 0}, r"--jobs was 0; it must be at least 1\."),
        (["good"], {"out": "full"}, r"index\.html exists; name another folder or --overwrite\."),
        (["good"], {"out": "not.ipynb"}, r"not\.ipynb cannot be written: "),
    ],
)  # fmt: skip
def test_mistakes_are_sentences_before_anything_runs(
    books, options, sentence, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    notebook(tmp_path / "good.ipynb", "open('ran', 'w')")
    (tmp_path / "not.ipynb").write_text("[1, 2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "index.html").write_text("mine")
    there = sorted(os.listdir(tmp_path))
    books = [f"{book}.ipynb" if book == "good" else book for book in books]
    with pytest.raises(StudyError, match=sentence):
        report(books, **{"out": "site", **options})
    assert sorted(os.listdir(tmp_path)) == there
    assert (tmp_path / "full" / "index.html").read_text() == "mine"


def test_formulas_are_drawn_without_a_script(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    text = r"A level $\rho = \sigma/\alpha$, $$W_2^2 = \sum_k d_k$$ not one: `$x$`, $\frac{$ at 5$."
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    to_html(tmp_path / "a.ipynb")
    page = (tmp_path / "a.html").read_text()
    assert page.count("<math") == 2 and 'display="block"' in page
    assert "<mi>&#x003C1;</mi>" in page or "<mi>ρ</mi>" in page
    assert "<code>$x$</code>" in page and r"$\frac{$" in page


def test_scripts_from_elsewhere_are_taken_out_of_a_page():
    page = (
        '<script src="https://cdn/x.js"></script><p>kept</p><script type="module">import m</script>'
    )
    assert offline(page + "<script>own()</script>") == "<p>kept</p><script>own()</script>"


def test_an_outcome_in_a_line():
    assert str(Outcome("a", "A", {}, True, 1.25)) == "a: ok, 1.2 s"
    assert str(Outcome("a", "A", {}, False, 2.0, error="gone.")) == "a: failed after 2.0 s: gone."
