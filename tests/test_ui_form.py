"""The form is read off the registries, and each sentence finds its control."""

import pytest

import workbench as wb
from workbench.studies import SECTIONS, StudyError
from workbench.ui.form import controls, edited, placed


@pytest.mark.parametrize(
    ("section", "name"), [(section, name) for section in SECTIONS for name in SECTIONS[section]]
)
def test_every_entry_has_a_control_for_each_parameter(section, name):
    study = wb.Study(**{section: name})
    mine = {c.key: c for c in controls(study) if c.section == section}
    flat = study.to_flat()
    assert set(mine) == {key for key in flat if key.partition(".")[0] == section}
    assert all(control.value == flat[key] for key, control in mine.items())
    assert mine[section].choices == tuple(SECTIONS[section])
    assert all(len(control.help) > 10 for control in mine.values())
    for control in mine.values():
        assert list(control.options.values()) == list(control.choices)


def test_a_control_can_be_set_to_its_own_value():
    """What the form shows is a study again, the same one."""
    inner = {"name": "Gaussian", "rank": 3}
    study = wb.Study(
        sampler={"name": "DDIM", "eta": 0.5},
        data="digits",
        denoiser={"name": "Perturbed", "of": inner},
        lenses=["output", {"name": "teleportation", "levels": 5}],
    )
    values = {control.key: control.value for control in controls(study)}
    assert study.changed(values) == study
    chosen = edited(study, "denoiser.of", values | {"denoiser.of": "Empirical"}).denoiser
    assert chosen.of == wb.Study(denoiser="Empirical").denoiser


def test_another_entry_brings_its_own_defaults_and_keeps_the_rest():
    study = wb.Study(sampler={"name": "DDIM", "eta": 0.5}, grid={"name": "karras", "steps": 7})
    values = {c.key: c.value for c in controls(study)} | {"sampler": "EulerMaruyama"}
    changed = edited(study, "sampler", values)
    assert changed.sampler.eta == 1.0
    assert changed.grid.steps == 7
    values = {c.key: c.value for c in controls(study)} | {"grid": "uniform"}
    assert edited(study, "grid", values).grid.steps == 7


def test_texts_are_taken_as_they_are_typed():
    study = wb.Study()
    values = {c.key: str(c.value) for c in controls(study)}
    assert edited(study, "grid.steps", values | {"grid.steps": "12"}).grid.steps == 12
    with pytest.raises(StudyError) as error:
        edited(study, "grid.steps", values | {"grid.steps": "twelve", "seeds.count": "-1"})
    beside, rest = placed(error.value.problems, [c.key for c in controls(study)])
    assert "'twelve'" in beside["grid.steps"]
    assert "'-1'" in beside["seeds.count"]
    assert rest == ""


def test_sentences_without_a_control_are_not_lost():
    problems = {"colour": "No such thing.", "grid.steps": "Few.", "denoiser.of.rnk": "Unknown."}
    beside, rest = placed(problems, ["grid.steps", "denoiser.of"])
    assert beside == {"grid.steps": "Few.", "denoiser.of": "Unknown."}
    assert rest == "No such thing."
