"""The command line gives the numbers of the library, and sentences with status 2."""

import json
import os
from types import SimpleNamespace

import pytest
import xarray as xr
from helpers import free_port, same_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed_studies import malformed
from typer.testing import CliRunner

import workbench as wb
from workbench.cli import app
from workbench.studies import Study, store

STUDY = Study(
    data="moons",
    grid={"name": "karras", "steps": 5},
    sampler={"name": "DDIM", "eta": 1.0},
    seeds={"first": 3, "count": 6},
    record={"fields": ["x", "score"], "every": 2},
    device="cpu",
)


def workbench(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_run_stores_the_numbers_of_the_library(suffix, tmp_path):
    study, out = tmp_path / f"study.{suffix}", tmp_path / "out.zarr"
    STUDY.dump(study)
    done = workbench("run", study, "-o", out)
    assert done.exit_code == 0, done.output
    assert "out.zarr: 4 time x 6 sample x 2 dim; 5 evaluations" in done.stdout
    same_run(store.read(out).load(), wb.run(STUDY))


def test_entries_can_be_set(tmp_path):
    """Another sampler drops the eta of the first; a stored study is the one that was run."""
    study, out = tmp_path / "study.yaml", tmp_path / "out.zarr"
    STUDY.dump(study)
    settings = ["--set", "sampler=Heun", "-s", "grid.steps=3", "-s", "process.beta_max=12.5"]
    assert workbench("run", study, "--out", out, *settings).exit_code == 0
    changes = {"sampler": "Heun", "grid.steps": 3, "process.beta_max": 12.5}
    expected = STUDY.changed(changes)
    assert (expected.sampler.name, expected.grid.steps) == ("Heun", 3)
    same_run(store.read(out).load(), wb.run(expected))
    stored = json.loads(xr.open_zarr(out, consolidated=False).attrs["study"])
    assert Study(**stored) == expected


def test_what_lenses_measured_is_said(tmp_path):
    settings = ["-s", "seeds.count=2", "-s", "device=cpu", "-s", "lenses=output,flow"]
    done = workbench("run", "-", "-o", tmp_path / "ring.zarr", *settings)
    said = done.stdout.splitlines()
    assert said[0].startswith(f"{tmp_path}/ring.zarr: 33 time x 2 sample x 2 dim; 64 evaluations")
    matched = "on the Gaussian with the data's covariance"
    assert sum(line.startswith("  output.") and matched in line for line in said) == 2
    assert any(line.startswith("  output: ") and line.endswith(".") for line in said)
    assert "  flow was not measured: Mixture has no closed-form probability flow" in done.stdout
    settings += ["-s", "data=gaussian", "-s", "denoiser=Gaussian"]
    done = workbench("run", "-", "-o", tmp_path / "one.zarr", *settings)
    assert "output.w2 " in done.stdout and matched not in done.stdout
    assert "not measured" not in done.stdout


def test_what_a_reader_has_to_know_is_said(tmp_path):
    settings = ["-s", "seeds.count=2", "-s", "sampler=UniPC", "-s", "sampler.order=3"]
    out = tmp_path / "out.zarr"
    done = workbench("run", "-", "-o", out, *settings, "-s", "grid.steps=2", "-s", "device=cpu")
    assert "2 steps of its kind, so all of them are of a lower order" in done.stdout


def test_a_dash_is_the_default_study(tmp_path):
    out = tmp_path / "out.zarr"
    small = ["-s", "seeds.count=2", "-s", "device=cpu"]
    assert workbench("run", "-", "-o", out, *small).exit_code == 0
    same_run(store.read(out).load(), wb.run(Study(seeds={"count": 2}, device="cpu")))


def test_what_exists_is_kept_unless_overwriting_is_asked_for(tmp_path, monkeypatch):
    study, out = tmp_path / "study.yaml", tmp_path / "out.zarr"
    STUDY.dump(study)
    assert workbench("run", study, "-o", out).exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr("workbench.studies.run", pytest.fail)  # refused before any work
        refused = workbench("run", study, "-o", out, "-s", "seeds.first=9")
    assert refused.exit_code == 2
    assert "out.zarr exists; choose another name or say --overwrite." in refused.stderr
    same_run(store.read(out).load(), wb.run(STUDY))
    assert workbench("run", study, "-o", out, "-s", "seeds.first=9", "--overwrite").exit_code == 0
    same_run(store.read(out).load(), wb.run(STUDY.changed({"seeds.first": 9})))


@pytest.mark.parametrize(
    ("study", "settings", "sentence"),
    [
        ("none.yaml", [], "none.yaml cannot be read"),
        ("-", ["grid.steps"], "--set was 'grid.steps'; write it as name=value"),
        ("-", ["grid.steps=0"], "grid.steps was '0'; it must be a whole number, at least 1"),
        ("-", ["gird_steps=4"], "no entry 'gird_steps' (did you mean 'grid.steps'?)"),
        ("-", ["process.beta_max=0.05"], "beta_max was 0.05; it must be at least beta_min (0.1)"),
        ("-", ["device=tpu"], "device was 'tpu'"),
        (
            "-",
            ["grid.final=denoise", "record.fields=score"],
            "score cannot be recorded at sigma = 0",
        ),
        ("-", ["self=1"], "no entry 'self'"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(study, settings, sentence, tmp_path):
    path = study if study == "-" else tmp_path / study
    options = [part for setting in settings for part in ("-s", setting)]
    done = workbench("run", path, "-o", tmp_path / "out.zarr", *options)
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.startswith("workbench: ") and sentence in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_version_and_help():
    assert workbench("--version").stdout == f"workbench {wb.__version__}\n"
    text = workbench("--help").stdout
    assert all(command in text for command in ("run", "serve", "doctor"))


def test_doctor(monkeypatch):
    monkeypatch.setattr("workbench.doctor.report", lambda: (["all well"], True))
    done = workbench("doctor")
    assert (done.exit_code, done.stdout) == (0, "all well\n")
    monkeypatch.setattr("workbench.doctor.report", lambda: (["not well"], False))
    assert workbench("doctor").exit_code == 1


def test_export_prints_or_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    STUDY.dump("study.json")
    assert workbench("export", "study.json").stdout == STUDY.to_yaml()
    changed = STUDY.changed({"grid.steps": 7})
    names = {"__name__": "read"}
    exec(workbench("export", "study.json", "--to", "script", "-s", "grid.steps=7").stdout, names)
    assert names["study"] == changed
    assert workbench("export", "study.json", "-o", "again.json").stdout == "again.json\n"
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "study.json").read_bytes()
    assert workbench("export", "study.json", "--to", "notebook").stdout == "study.ipynb\n"
    cells = json.loads((tmp_path / "study.ipynb").read_text(encoding="utf-8"))["cells"]
    assert '"data": "moons"' in "".join(cells[1]["source"])
    again = workbench("export", "study.json", "--to", "notebook")
    assert again.exit_code == 2 and "study.ipynb exists; choose another name" in again.stderr
    assert workbench("export", "-", "--to", "pdf").stderr.startswith(
        "workbench: --to was 'pdf'; it"
    )


def test_schema_is_printed():
    assert json.loads(workbench("schema").stdout) == Study.json_schema()
    assert "yaml-language-server: $schema=" in workbench("schema", "--help").stdout


def test_serve_opens_a_study_on_its_page(tmp_path, monkeypatch):
    server = pytest.importorskip("workbench.ui.server")
    login = pytest.importorskip("workbench.ui.login")
    study, opened, logins = tmp_path / "study.yaml", [], []
    STUDY.dump(study)

    def served(address, port, names, found, who):
        """Instead of a server that never ends: its loop, for a moment."""
        logins.append(who)
        assert server.PAGE in [app.slug for app in found]
        loop = server.IOLoop.current()
        loop.call_later(0.2, loop.stop)
        return SimpleNamespace(start=lambda: None, io_loop=loop)

    monkeypatch.setattr(server, "apps", lambda: [server.App("trajectories", "", "", None)])
    monkeypatch.setattr(server, "_check_free", lambda address, port: None)
    monkeypatch.setattr(server, "_server", served)
    monkeypatch.setattr(server, "_end_by_signal", lambda loop: None)
    monkeypatch.setattr(os, "_exit", lambda status: None)
    monkeypatch.setattr(server.webbrowser, "open", opened.append)
    place = f"http://localhost:5006/trajectories?{STUDY.to_query()}"
    assert place in workbench("serve", study).stdout and opened == [place]
    assert Study.from_query(opened[0].partition("?")[2]) == STUDY
    workbench("serve", study, "--no-show")
    assert opened == [place]
    workbench("serve")
    assert opened == [place, "http://localhost:5006/"]
    users = tmp_path / "users.txt"
    users.write_text(f"ada:{login.hashed('lovelace 1843')}\n")
    users.chmod(0o600)
    workbench("serve", "--no-show", "--address", "0.0.0.0", "--password-file", users)
    assert logins[:-1] == [None] * 3 and isinstance(logins[-1], login.Passwords)


def test_malformed_files_are_refused_before_anything_is_done(tmp_path, monkeypatch):
    """By one command or another; what reads them is the same."""
    monkeypatch.chdir(tmp_path)
    commands = st.sampled_from([["run", "-o", "out.zarr"], ["export"], ["serve"]])

    @settings(max_examples=10, database=None, suppress_health_check=list(HealthCheck))
    @given(malformed.filter(lambda text: text.isascii()), commands)
    def check(text, command):
        (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
        name, *options = command
        done = workbench(name, "study.yaml", *options)
        assert done.exit_code == 2 and done.stdout == "", (done.exit_code, done.exception)
        assert done.stderr.startswith("workbench: ") and done.stderr.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]

    check()


def test_report_says_what_is_wrong_in_a_sentence(tmp_path, monkeypatch):
    pytest.importorskip("papermill")
    monkeypatch.chdir(tmp_path)
    for options, sentence in (
        (["nothing"], "there is no notebook nothing; the package has "),
        (["-p", "grid.stesp=3"], "grid log_snr has no parameter 'stesp' (did you mean"),
        (["-p", "grid.steps"], "--parameter was 'grid.steps'; write it as name=value"),
    ):
        done = workbench("report", *options, "--out", "site")
        assert done.exit_code == 2 and sentence in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("well", [True, False])
def test_report_ends_with_status_1_if_a_notebook_failed(well, monkeypatch):
    from workbench.studies.report import Outcome

    outcome = Outcome("a", "A", {}, well, 1.0, error="" if well else "gone.")

    def executed(notebooks, values, out, timeout, jobs, overwrite, done):
        assert (notebooks, values, str(out), timeout, jobs) == (["a"], {"n": 3}, "site", 9.0, 2)
        done(outcome)
        return [outcome]

    monkeypatch.setattr("workbench.studies.report.report", executed)
    done = workbench("report", "a", "-p", "n=3", "-o", "site", "--timeout", 9, "--jobs", 2)
    assert done.exit_code == (0 if well else 1)
    assert str(outcome) in done.stdout and "index.html" in done.stdout


def test_what_is_stored_is_verified_and_computed_again(tmp_path):
    study, out = tmp_path / "study.yaml", tmp_path / "out.zarr"
    STUDY.dump(study)
    assert workbench("run", study, "-o", out).exit_code == 0
    whole = store.read(out).load()
    done = workbench("verify", tmp_path)
    assert done.exit_code == 0 and "files, all as they were written" in done.output
    piece = next(path for path in (out / "x" / "c").rglob("*") if path.is_file())
    content = bytearray(piece.read_bytes())
    content[-1] ^= 1
    piece.write_bytes(content)
    key = piece.relative_to(out).as_posix()
    done = workbench("verify", out)
    assert done.exit_code == 1 and f"  {key} is not what was written" in done.output
    done = workbench("run", study, "-o", out)
    assert done.exit_code == 0 and "computed again" in done.output
    assert "it was whole already" not in done.output
    assert store.read(out).load().drop_attrs().identical(whole.drop_attrs())
    assert workbench("verify", out).exit_code == 0
    whole.to_zarr(tmp_path / "older.zarr", consolidated=False)
    done = workbench("verify", tmp_path / "older.zarr")
    assert done.exit_code == 0 and "written without digests" in done.output
    done = workbench("run", study, "-o", tmp_path / "older.zarr")
    assert done.exit_code == 0 and "it was whole already (written without digests" in done.output
    assert workbench("verify", tmp_path / "none").exit_code == 2


def test_a_sweep_with_failed_studies_ends_with_another_status(tmp_path):
    spec = tmp_path / "sweep.yaml"
    base = "study: {data: gaussian, denoiser: Gaussian, grid: {name: log_snr, steps: 2}}"
    spec.write_text(f"{base}\ngrid: {{device: [cpu, mps]}}\n")
    done = workbench("sweep", spec, "-o", tmp_path / "out", "--workers", "0")
    assert done.exit_code == 1 and "1 failed" in done.output
    spec.write_text(f"{base}\ngrid: {{device: [cpu]}}\n")
    done = workbench("sweep", spec, "-o", tmp_path / "other", "--workers", "0")
    assert done.exit_code == 0 and "none failed" in done.output
    (store,) = (tmp_path / "other" / "runs").glob("*.zarr")
    next(path for path in (store / "final" / "c").rglob("*") if path.is_file()).unlink()
    assert workbench("verify", tmp_path / "other").exit_code == 1
    assert workbench("sweep", spec, "-o", tmp_path / "other", "--workers", "0").exit_code == 0
    assert workbench("verify", tmp_path / "other").exit_code == 0


def test_a_run_that_ends_the_process_is_a_failed_run(tmp_path, monkeypatch):
    def ends(*_, **__):
        raise SystemExit(0)

    monkeypatch.setattr("workbench.studies.chunked.plan", ends)
    done = workbench("run", "-", "-o", tmp_path / "out.zarr")
    assert done.exit_code == 2 and "the run ended itself by SystemExit(0)" in done.output


@pytest.mark.parametrize("options", [["--address", "0.0.0.0"], ["--origin", "lab.example"]])
def test_others_come_in_by_a_login_or_not_at_all(options):
    done = workbench("serve", "--no-show", "--port", str(free_port()), *options)
    assert done.exit_code == 2
    assert f"{' '.join(options)} lets others reach the pages" in done.output
    assert "--password-file" in done.output and "--insecure-open" in done.output


def test_a_password_is_entered(tmp_path):
    file = tmp_path / "users.txt"

    def entered(name, text):
        return CliRunner().invoke(app, ["password", name, "--file", str(file)], input=text)

    assert entered("ada", "lovelace 1843\n").exit_code == 0
    assert entered("bob", "builder 2000\n").exit_code == 0
    assert [line.partition(":")[0] for line in file.read_text().splitlines()] == ["ada", "bob"]
    assert file.stat().st_mode & 0o077 == 0
    done = entered("eve", "short\n")
    assert done.exit_code == 2 and "it must have 8 to 256" in done.output
    done = entered("a:b", "lovelace 1843\n")
    assert done.exit_code == 2 and "the name was 'a:b'" in done.output
    assert "eve" not in file.read_text()
