"""The command line: ``workbench run | sweep | serve | verify | export | report | list | ...``."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import inspect
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from workbench import __version__
from workbench.workers.memory import keep_freed

_Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin", help="Python file that registers more objects. May be repeated.", is_eager=True
    ),
]


_StudyFile = Annotated[
    Path, typer.Argument(help="A study file, YAML or JSON; '-' for the defaults.")
]
_Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Change an entry: grid.steps=64. May be repeated."),
]


class _App(typer.Typer):
    """Commands that each take ``--plugin``."""

    def command(self, *args, **kwargs):
        register = super().command(*args, **kwargs)

        def with_plugins(function):
            @functools.wraps(function)
            def command(*, plugin=None, **given):
                _use(plugin or ())
                return function(**given)

            signature = inspect.signature(function, eval_str=True)
            more = inspect.Parameter(
                "plugin", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_Plugins
            )
            parameters = [*signature.parameters.values(), more]
            command.__signature__ = signature.replace(parameters=parameters)
            command.__annotations__ = {one.name: one.annotation for one in parameters}
            register(command)
            return function

        return with_plugins


def _use(plugins) -> None:
    """Load plugins, here and in every process that is started from here."""
    from workbench.registry import PluginError, use_plugins

    with _refused(PluginError):
        use_plugins(plugins)


app = _App(
    help="See why a diffusion model does what it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        print(f"workbench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """See why a diffusion model does what it does."""


def _fail(sentence: str) -> typer.Exit:
    print(f"workbench: {sentence}", file=sys.stderr)
    return typer.Exit(2)


@contextlib.contextmanager
def _refused(*errors: type[Exception]):
    """Errors of these kinds end the command with their sentence."""
    try:
        yield
    except errors as error:
        raise _fail(str(error)) from None


@app.command()
def serve(
    study: Annotated[
        Path | None, typer.Argument(help="A study file to open on its page.", show_default=False)
    ] = None,
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5006,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "localhost",
    show: Annotated[bool, typer.Option(help="Open the browser.")] = True,
    origin: Annotated[
        list[str] | None,
        typer.Option(help="Another name the pages are opened under: host or host:port."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Folder whose runs and sweeps are listed.",
            envvar="WORKBENCH_RESULTS",
            show_default="results",
        ),
    ] = None,
    networks: Annotated[
        Path | None,
        typer.Option(
            help="Folder whose checkpoints may be opened on the page of networks.",
            envvar="WORKBENCH_NETWORKS",
            show_default=False,
        ),
    ] = None,
    password_file: Annotated[
        Path | None,
        typer.Option(
            help="Names and hashed passwords of who may come in; see workbench password.",
            envvar="WORKBENCH_PASSWORD_FILE",
            show_default=False,
        ),
    ] = None,
    oauth_provider: Annotated[
        str | None,
        typer.Option(help="Log in by github, google, gitlab, ...; as Panel supports them."),
    ] = None,
    oauth_user: Annotated[
        list[str] | None,
        typer.Option(help="Who of them may come in; '*' is everybody. May be repeated."),
    ] = None,
    insecure_open: Annotated[
        bool, typer.Option("--insecure-open", help="Let everybody in who reaches the address.")
    ] = False,
    workers: Annotated[
        int, typer.Option(help="Processes that compute.", envvar="WORKBENCH_WORKERS", min=1)
    ] = 2,
    session_memory: Annotated[
        str | None,
        typer.Option(
            help="Memory that the runs of one session may take: 500MB, 2GB.",
            envvar="WORKBENCH_SESSION_MEMORY",
            show_default="half of the server's",
        ),
    ] = None,
    server_memory: Annotated[
        str | None,
        typer.Option(
            help="Memory that all runs together may take.",
            envvar="WORKBENCH_SERVER_MEMORY",
            show_default="half of the machine's",
        ),
    ] = None,
    time_limit: Annotated[
        float,
        typer.Option(help="Seconds that a run of a page may take.", envvar="WORKBENCH_TIME_LIMIT"),
    ] = 600.0,
) -> None:
    """Open the dashboards, or a study on its page.

    Under an address that others can reach, it must be said who may come in.
    """
    from workbench.workers.pool import PREPARE, Pool

    for name, folder in (("results", results), ("networks", networks)):
        if folder is not None and not folder.is_dir():
            raise _fail(f"--{name} was {folder}; it must be a folder that is there: make it first.")
    if results is not None:  # what pages begin stands there as well
        os.environ["WORKBENCH_RESULTS"] = str(results)
    os.environ.pop("WORKBENCH_TORCHSCRIPT", None)  # no page opens a program
    with Pool(workers, PREPARE) as pool:  # at once: it takes as long as what follows
        chosen = _study(study, []) if study else None
        try:
            from workbench.ui.login import LoginError, Passwords, oauth
            from workbench.ui.server import ServeError, serve, usual_limits
        except ImportError as error:
            hint = "install what the pages need: pip install 'diffusion-workbench[serve]'"
            raise _fail(f"{error}; {hint}") from None
        with _refused(LoginError, ServeError):
            if password_file is not None and oauth_provider is not None:
                raise LoginError(
                    "--password-file and --oauth-provider exclude each other; say one."
                )
            login = None
            if password_file is not None:
                login = Passwords(password_file)
            elif oauth_provider is not None:
                login = oauth(oauth_provider, oauth_user or ())
            limits = usual_limits(_size(session_memory), _size(server_memory), time_limit)
            who = (login, insecure_open)
            serve(address, port, show, origin or (), chosen, results, *who, pool, limits, networks)
    sys.stdout.flush()
    os._exit(0)  # without waiting for what is computed for pages that are gone


@app.command()
def password(
    name: Annotated[str, typer.Argument(help="Who may come in.")],
    file: Annotated[Path, typer.Option(help="The file, for workbench serve --password-file.")],
) -> None:
    """Enter a name and its password in a file; the password is asked for, or read from a pipe."""
    import getpass

    from workbench.ui.login import LoginError, write_user

    if sys.stdin.isatty():
        given = getpass.getpass(f"Password of {name}: ")
        if getpass.getpass("Once more: ") != given:
            raise _fail("the two passwords differ; nothing was written.")
    else:
        given = sys.stdin.readline().rstrip("\r\n")
    with _refused(LoginError):
        write_user(file, name, given)
    print(f"{name} is in {file}.")


@app.command()
def run(
    study: _StudyFile,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Zarr store, or .nc file, to write.", show_default="job"),
    ] = None,
    set_: _Settings = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing store.")] = False,
) -> None:
    """Carry out a study and store its arrays; after a crash, again, go on where it ended.

    Without --out it is a job, which goes on when this command is ended: workbench jobs.
    """
    from workbench.studies import StudyError
    from workbench.studies.chunked import keep
    from workbench.studies.measuring import absent, findings, scalars
    from workbench.studies.store import StoreError
    from workbench.trajectory import RunError

    told = []

    def tell(plan) -> None:
        told.append(plan)
        print(plan, file=sys.stderr)

    chosen, repaired = _study(study, set_), functools.partial(print, file=sys.stderr)
    try:
        if out is None:
            return _as_job(chosen)
        dataset = keep(chosen, out, _on_terminal(_show_step), overwrite, tell, repaired)
    except RunError as error:
        raise _fail(f"{error} What was recorded until then is in {error.kept}.") from None
    except SystemExit as error:
        raise _fail(f"the run ended itself by {error!r}; what it calls must not do so.") from None
    except (StudyError, StoreError, ValueError, NotImplementedError) as error:
        raise _fail(str(error)) from None
    shape = {**dataset["t"].sizes, **dataset["final"].sizes}
    sizes = " x ".join(f"{size} {name}" for name, size in shape.items())
    done = f"{dataset.attrs['nfe']} evaluations, {dataset.attrs['seconds']:.3g} s"
    print(f"{out}: {sizes}; {done}" + ("" if told else f"; it was whole already{_trust(out)}"))
    for note in filter(None, dataset.attrs.get("notes", "").split("\n")):
        print(f"  {note}")
    for name, value in sorted(scalars(dataset).items()):
        print(f"  {name} {value:.6g}: {dataset[name].attrs.get('long_name', '')}")
    for name, sentences in findings(dataset).items():
        for sentence in sentences:
            print(f"  {name}: {sentence}")
    for name, reason in absent(dataset).items():
        print(f"  {name} was not measured: {reason}")


@app.command()
def sweep(
    spec: Annotated[Path, typer.Argument(help="A sweep file, YAML or JSON.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the sweep.", show_default="job"),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="A Dask scheduler that is there: tcp://host:8786.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes on this machine; 0 computes in this one.", show_default="2"),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing sweep.")] = False,
) -> None:
    """Carry out every study of a sweep; again after a crash, only what is missing.

    Without --out it is a job, which goes on when this command is ended: workbench jobs.
    """
    from workbench.studies import SweepError, SweepSpec
    from workbench.studies import sweep as carry_out
    from workbench.studies.store import StoreError

    with _refused(SweepError, StoreError):
        if out is None:
            return _as_job(SweepSpec.load(spec))
        show = _on_terminal(_show_sweep)
        dataset = carry_out(spec, out, scheduler, workers, overwrite, show)
    sizes = " x ".join(f"{size} {name}" for name, size in dataset["status"].sizes.items())
    failed = dataset.attrs["failed"]
    print(f"{out / 'sweep.zarr'}: {sizes}; {failed or 'none'} failed")
    if failed:
        print(f"The reasons are in {out / 'failures'}; the same command tries again.")
        raise typer.Exit(1)


@app.command()
def jobs(
    hash: Annotated[
        str | None, typer.Argument(help="Of one; six digits of it will do.", show_default="all")
    ] = None,
    cancel: Annotated[bool, typer.Option(help="End it.")] = False,
) -> None:
    """Say how far jobs are, whoever has asked for them; of one also why it failed, and its log."""
    from workbench.studies import jobs as made

    with _refused(made.JobError):
        chosen = made.jobs() if hash is None else [made.find(hash)]
        if cancel:
            if hash is None:
                raise _fail("--cancel needs the hash of a job.")
            chosen[0].cancel()
    for job in chosen:
        print(f"{job.hash[:12]}  {job.state:9} {job.fraction:4.0%}  {job.store}")
    if hash is not None:
        print(*filter(None, (chosen[0].reason, chosen[0].log.strip())), sep="\n", end="")


def _as_job(work) -> None:
    """Have ``work`` done by a job, wait for it and say where its result is."""
    import time

    from workbench.studies.jobs import submit

    job = submit(work)
    try:
        while not job.is_over:
            time.sleep(0.2)
            if sys.stderr.isatty():
                print(f"\r\x1b[K{job.state}, {job.fraction:.0%}", end="", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"It goes on; workbench jobs {job.hash[:12]} --cancel ends it.", file=sys.stderr)
        raise
    if job.state != "done":
        raise _fail(job.reason or f"it was {job.state}.")
    print(job.store)


@app.command()
def train(
    study: Annotated[Path, typer.Argument(help="A training file, YAML or JSON.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Checkpoint to write.", show_default="STUDY.safetensors"),
    ] = None,
) -> None:
    """Train a network, or go on where a training of that file was interrupted.

    Its state is kept beside the checkpoint, in a folder .training, until you delete that.
    """
    import time

    from workbench.denoisers.checkpoints import CheckpointError
    from workbench.learning import TrainingError
    from workbench.studies import StudyError
    from workbench.studies.training import Training, carry_out

    out = out or Path(f"{study.stem}.safetensors")
    if out.suffix != ".safetensors":
        raise _fail(f"--out was {out}; a checkpoint's name ends in .safetensors.")
    began, said = time.monotonic(), 0

    def tell(done: int, total: int, curve: dict) -> None:
        nonlocal said
        if len(curve["step"]) > said:
            said = len(curve["step"])
            held = ", ".join(f"{loss:.4g}" for loss in curve["held_out"][-1])
            means = f"loss {curve['loss'][-1]:.4g}" + (f"; held out {held}" if held else "")
            print(f"step {curve['step'][-1]} of {total}: {means}", file=sys.stderr, flush=True)

    try:
        command = f"workbench train {study.name} --out {out.name}"
        carry_out(Training.load(study), out.with_suffix(".training"), out, command, tell)
    except (StudyError, TrainingError, CheckpointError) as error:
        raise _fail(str(error)) from None
    except OSError as error:
        raise _fail(f"{out} cannot be written: {error.strerror or error}.") from None
    print(f"{out}: trained in {time.monotonic() - began:.0f} s; its card is {out.stem}.json")


@app.command()
def verify(
    paths: Annotated[
        list[Path], typer.Argument(help="Zarr stores, folders of sweeps, or folders of results.")
    ],
) -> None:
    """Read every file of what is stored, and compare it with what was written.

    The status is 1 if anything is damaged. The command that wrote it, given again, computes again
    what is.
    """
    from workbench.studies.store import StoreError, check

    stores = [store for path in paths for store in _stores(path)]
    if not stores:
        raise _fail(f"{paths[0]} is no Zarr store and holds none; there is nothing to verify.")
    damaged = 0
    for store in stores:
        try:
            found = check(store)
        except StoreError as error:
            damaged += 1
            print(f"{store}: {error}")
            continue
        damaged += bool(found.broken)
        if not found.digests:
            print(f"{store}: nothing can be said, it was written without digests")
        elif found.broken:
            print(f"{store}: {len(found.broken)} of {found.files} files are damaged")
            for key, problem in found.broken.items():
                print(f"  {key} {problem}")
        else:
            state = "" if found.complete else ", of a run that has not ended"
            print(f"{store}: {found.files} files, all as they were written{state}")
    raise typer.Exit(1 if damaged else 0)


def _stores(path: Path) -> list[Path]:
    """The Zarr stores at a path or beneath it, not those inside of others."""
    if path.suffix == ".zarr" or (path / "zarr.json").exists():
        return [path]
    if not path.is_dir():
        return []
    inside = sorted(one for one in path.iterdir() if one.is_dir() and not one.is_symlink())
    hidden = (".trash", ".git")
    return [store for one in inside if one.name not in hidden for store in _stores(one)]


@app.command()
def export(
    study: _StudyFile,
    to: Annotated[str, typer.Option(help="notebook, script or study.")] = "study",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; else it is printed.")
    ] = None,
    set_: _Settings = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
) -> None:
    """Write a study as a notebook, as a Python script, or as a complete study file.

    Each leaves the same arrays. A notebook is written beside you under the study's name if --out
    names no other place.
    """
    from workbench.studies import StudyError
    from workbench.studies.export import export as exported

    chosen = _study(study, set_)
    if out is None and to == "notebook":
        out = Path(f"{'study' if str(study) == '-' else study.stem}.ipynb")
    with _refused(StudyError):
        text = exported(chosen, to, out, overwrite)
    print(out if out else text, end="\n" if out else "")


@app.command()
def report(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    notebooks: Annotated[
        list[str] | None,
        typer.Argument(help="Files, or names of packaged notebooks; all of these if none."),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="Set a parameter: grid.steps=64. May be repeated."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that each notebook may take.")] = 1800.0,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Notebooks at a time.", show_default="cores")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace files of an earlier report.")] = False,
) -> None:
    """Execute notebooks and write them, with an index, as pages that need no network."""
    from workbench.studies import StudyError
    from workbench.studies.report import report as executed
    from workbench.studies.report import values_of

    def done(outcome) -> None:
        print(outcome, flush=True)

    with _refused(StudyError, ValueError):
        values = values_of(_pairs(parameter or [], "--parameter"))
        found = executed(notebooks or (), values, out, timeout, jobs, overwrite, done)
    print(out / "index.html")
    raise typer.Exit(0 if all(outcome.ok for outcome in found) else 1)


@app.command(name="list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="Of what kind.", show_default="all")] = None,
) -> None:
    """Print everything that a study can name: its one sentence and its parameters."""
    from workbench.studies.catalogue import catalogue

    with _refused(ValueError):
        print(catalogue(kind))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the study file, for editors.

    Save it, and begin a study file with the line
    "# yaml-language-server: $schema=study.schema.json": an editor then completes and checks it.
    """
    import json

    from workbench.studies import Study

    print(json.dumps(Study.json_schema(), indent=2, ensure_ascii=False))


@app.command()
def doctor() -> None:
    """Say what this installation has, what is missing, and how to get it."""
    from workbench.doctor import report

    lines, whole = report()
    print("\n".join(lines))
    raise typer.Exit(0 if whole else 1)


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    from workbench.studies.limits import size_of

    with _refused(ValueError):
        return size_of(text)


def _trust(out: Path) -> str:
    from workbench.studies.store import has_digests

    if out.suffix == ".nc" or has_digests(out):
        return ""
    return " (written without digests, so that damage would not be noticed)"


def _study(path: Path, settings: list[str] | None):
    """The study of a file ('-' for the defaults) with some entries changed."""
    from workbench.studies import Study, StudyError

    with _refused(StudyError, ValueError):
        chosen = Study() if str(path) == "-" else Study.load(path)
        return chosen.changed(_pairs(settings or []), folder=Path())


def _pairs(settings: list[str], option: str = "--set") -> dict[str, str]:
    pairs = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(
                f"{option} was {setting!r}; write it as name=value, e.g. grid.steps=64."
            )
        pairs[key] = value
    return pairs


def _on_terminal(show):
    """What shows how far the work is, on a terminal only."""
    return show if sys.stderr.isatty() else None


def _show_step(done: int, total: int) -> None:
    print(f"\rstep {done} of {total}", end="\n" if done == total else "", file=sys.stderr)


def _show_sweep(progress) -> None:
    end = "\n" if progress.done == progress.total else ""
    print(f"\r\x1b[K{progress}", end=end, file=sys.stderr, flush=True)


def _without_dask() -> None:
    """Hide Dask from xarray, which else imports all of ``dask.array``, a second's work, to ask of
    each array whether it is one of Dask's: one run has none, unless a plugin makes some."""
    from importlib.metadata import entry_points

    from workbench.registry import GROUP, VARIABLE

    plugged = any(word.startswith("--plugin") for word in sys.argv) or os.environ.get(VARIABLE)
    if not plugged and "xarray" not in sys.modules and not entry_points(group=GROUP):
        sys.modules.setdefault("dask", None)


def main() -> None:
    """Entry point."""
    # Imports make some hundred thousand objects that stay: looking through them again and again for
    # what may go takes a tenth of the start.
    gc.set_threshold(50_000, 20, 20)
    keep_freed()
    if sys.argv[1:2] == ["run"]:
        _without_dask()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


def command() -> None:
    """A process of one command: :func:`main`, and out at once when all is written and closed.

    Taking the interpreter apart, object by object, takes more than a second after torch.
    """
    status: list[int] = []

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr) if status else ():
            stream.flush()
        if status:
            os._exit(status[0])

    atexit.register(leave)  # the first one, and so the last that is called
    try:
        main()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            status.append(ended.code or 0)
        raise


if __name__ == "__main__":
    command()
