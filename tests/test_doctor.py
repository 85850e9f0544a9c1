"""The doctor reads what is installed and names what is missing."""

import shutil
from importlib import metadata

import torch

import workbench as wb
from workbench import doctor


def test_versions_are_those_installed(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: f"1.{len(name)}")
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/x" if name == "chromium" else None)
    lines, whole = doctor.report()
    text = "\n".join(lines)
    assert whole and lines[-1] == "everything a page needs is here"
    assert f"workbench  {wb.__version__}" in text and f"torch      {torch.__version__}" in text
    assert "numpy 1.5" in text and "scikit-learn 1.12" in text and "missing" not in text
    assert "/bin/x" in text


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch):
    """Without a package of the core or the pages it is not whole; notebooks are an extra."""

    def without(*gone):
        def version(name):
            if name in gone:
                raise metadata.PackageNotFoundError(name)
            return "1.0"

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(shutil, "which", lambda name: None)
        lines, whole = doctor.report()
        return "\n".join(lines), whole

    text, whole = without("jupyterlab", "ipykernel")
    assert whole
    assert (
        "missing: jupyterlab, ipykernel. Install: pip install 'diffusion-workbench[notebooks]'"
        in text
    )
    assert "Install: apt install chromium" in text
    for package, extra in (("panel", "[serve]"), ("zarr", "")):
        text, whole = without(package)
        assert not whole and text.endswith("something is missing, see above")
        assert f"missing: {package}. Install: pip install 'diffusion-workbench{extra}'" in text


def test_every_declared_dependency_of_a_group_is_looked_for():
    """The groups name what pyproject.toml declares for the core and for the pages."""
    import re
    import tomllib
    from pathlib import Path

    text = (Path(doctor.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"]

    def names(requirements):
        return {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}

    assert names(project["dependencies"]) - {"torch"} == set(doctor.GROUPS["core"][0].split())
    assert names(extras["serve"]) == set(doctor.GROUPS["pages"][0].split())
