"""The command line: ``workbench serve | run | doctor``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from workbench import __version__

__all__ = ["app", "main"]

app = typer.Typer(
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


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5006,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "localhost",
    show: Annotated[bool, typer.Option(help="Open the browser.")] = True,
    origin: Annotated[
        list[str] | None,
        typer.Option(help="Another name the pages are opened under: host or host:port."),
    ] = None,
) -> None:
    """Open the dashboards."""
    try:
        from workbench.ui.server import ServeError, serve
    except ImportError as error:
        hint = "install what the pages need: pip install 'diffusion-workbench[serve]'"
        raise _fail(f"{error}; {hint}") from None
    try:
        serve(address, port, show, origin or ())
    except ServeError as error:
        raise _fail(str(error)) from None


@app.command()
def run(
    study: Annotated[
        Path, typer.Argument(help="A study file, YAML or JSON; '-' for the defaults.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Zarr store to write.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="Change an entry: grid_steps=64. May be repeated."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing store.")] = False,
) -> None:
    """Carry out a study and store its arrays."""
    from workbench.studies import Study, StudyError
    from workbench.studies import run as carry_out
    from workbench.studies.store import StoreError, check_free, write
    from workbench.trajectory import RunError

    try:
        flat = (Study() if str(study) == "-" else Study.load(study)).to_flat()
        chosen = Study.changed(flat, _pairs(set_ or []))
        check_free(out, overwrite)
        dataset = carry_out(chosen, _progress())
        write(dataset, out, overwrite)
    except RunError as error:
        partial = error.run.dataset
        partial.attrs["study"] = chosen.to_json()
        write(partial, out, overwrite)
        raise _fail(f"{error} What was recorded until then is in {out}.") from None
    except (StudyError, StoreError, ValueError, NotImplementedError) as error:
        raise _fail(str(error)) from None
    sizes = " x ".join(f"{size} {name}" for name, size in dataset.sizes.items())
    print(f"{out}: {sizes}; {dataset.attrs['nfe']} evaluations, {dataset.attrs['seconds']:.3g} s")


@app.command()
def doctor() -> None:
    """Say what this installation has, what is missing, and how to get it."""
    from workbench.doctor import report

    lines, whole = report()
    print("\n".join(lines))
    raise typer.Exit(0 if whole else 1)


def _pairs(settings: list[str]) -> dict[str, str]:
    pairs = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set was {setting!r}; write it as name=value, e.g. grid_steps=64.")
        pairs[key] = value
    return pairs


def _progress():
    """A line that says how far the run is, on a terminal only."""
    if not sys.stderr.isatty():
        return None

    def on_step(done: int, total: int) -> None:
        print(f"\rstep {done} of {total}", end="\n" if done == total else "", file=sys.stderr)

    return on_step


def main() -> None:
    """Entry point."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
