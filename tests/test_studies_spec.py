"""The study file in all its spellings, and its refusals."""

import hashlib
import math
import os
import re
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed_studies import MARK, malformed

from workbench.sampling import FIELDS
from workbench.studies import SECTIONS, Study, StudyError, SweepError, SweepSpec, build
from workbench.studies.training import Training


def parameters(section, name):
    """Those that a number, a text or a choice fills."""
    known = SECTIONS[section].entries[name].parameters
    return {key: one for key, one in known.items() if one.type in (int, float, bool, str)}


def values(parameter):
    """Any value that a declared parameter allows."""
    if parameter.choices:
        return st.sampled_from(parameter.choices)
    if parameter.type is bool:
        return st.booleans()
    p = parameter.param
    low, high = p.gt if p.ge is None else p.ge, p.lt if p.le is None else p.le
    low, high = -1e3 if low is None else low, 1e6 if high is None else high
    if parameter.type is int:
        return st.integers(low, high)
    return st.floats(
        low, high, exclude_min=p.ge is None and p.gt is not None, exclude_max=p.lt is not None
    )


@st.composite
def sections(draw, section=None, name=None):
    """A study as nested values: every section at random, one of them given."""
    made = {}
    for each in SECTIONS:
        chosen = name if each == section else draw(st.sampled_from(list(SECTIONS[each])))
        given_ = {key: draw(values(p)) for key, p in parameters(each, chosen).items()}
        kept = draw(st.sets(st.sampled_from(sorted(given_)))) if given_ else ()
        made[each] = {"name": chosen, **{key: given_[key] for key in kept}}
    made["seeds"] = {"first": draw(st.integers(0, 2**53)), "count": draw(st.integers(1, 10**6))}
    fields = st.lists(st.sampled_from(list(FIELDS)), min_size=1, unique=True)
    made["record"] = {"fields": draw(fields), "every": draw(st.integers(1, 10_000))}
    made["dtype"] = draw(st.sampled_from(["float32", "float64"]))
    made["device"] = draw(st.sampled_from(["auto", "cpu", "cuda", "mps"]))
    return made


def test_every_spelling_of_a_study_is_the_study(tmp_path):
    @settings(max_examples=16)
    @given(sections())
    def check(nested):
        study = Study(**nested)
        for key, value in nested.items():  # nothing given is lost, and nothing is rounded
            found = getattr(study, key)
            if isinstance(value, dict):
                found = {k: getattr(found, k) for k in value}
                found = {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}
            assert found == value
        assert Study(**study.to_dict()) == study
        assert Study.parse(study.to_yaml()) == study
        assert Study.parse(study.to_json()) == study
        assert Study.from_flat(study.to_flat()) == study == study.changed(study.to_flat())
        assert Study.from_query(study.to_query()) == study
        assert Study.from_query("?" + study.to_query()) == study
        for file in (tmp_path / "study.yaml", tmp_path / "study.json"):
            study.dump(file)
            assert Study.load(file) == study
        assert Study.salvage(study.to_flat()) == (study, {})
        # As version 1 wrote it, which had no objects within objects.
        old = {
            k.replace(".", "_") if k.count(".") == 1 else k: v for k, v in study.to_flat().items()
        }
        assert Study.from_flat(old | {"study": 1}) == study

    check()


@pytest.mark.parametrize(("section", "name"), [(s, n) for s in SECTIONS for n in SECTIONS[s]])
def test_a_study_holds_every_parameter(section, name):
    whole = Study(**{section: name}).to_dict()[section]
    assert list(whole) == ["name", *SECTIONS[section].entries[name].parameters]


DEEP = {
    "data": {"name": "moons", "size": 60},
    "denoiser": {
        "name": "Perturbed",
        "scale": 0.05,
        "of": {"name": "Spliced", "above": {"name": "Gaussian", "rank": 1}, "rho": 2.0},
    },
    "process": {"name": "EqualSNR", "basis": "Hartley", "base": {"name": "VP", "beta_max": 12.0}},
    "grid": {"name": "times", "t": [1.0, 0.5, 0.25], "final": "denoise"},
    "lenses": ["output", {"name": "teleportation", "levels": 20}],
}


def test_objects_within_objects_in_every_spelling(tmp_path):
    study = Study(**DEEP)
    assert study.denoiser.of.above.rank == 1 and study.process.base.beta_max == 12.0
    assert study.denoiser.of.below.name == "Empirical" and study.grid.t == (1.0, 0.5, 0.25)
    flat = study.to_flat()
    assert flat["denoiser.of.above.rank"] == 1 and flat["grid.t"] == "1.0,0.5,0.25"
    assert (flat["lenses"], flat["lenses.teleportation.levels"]) == ("output,teleportation", 20)
    assert Study.parse(study.to_yaml()) == Study.from_query(study.to_query()) == study
    assert study.changed(flat) == Study.from_flat(flat) == study
    deeper = study.changed({"denoiser.of.above": "Gaussian:rank=2", "lenses.1.levels": "5"})
    assert deeper.denoiser.of.above.rank == 2 and deeper.denoiser.of.rho == 2.0
    assert deeper.lenses[1].levels == 5 and deeper.lenses[0] == study.lenses[0]
    other = deeper.changed({"denoiser.of": "Empirical", "lenses": "teleportation"})
    assert set(other.denoiser.of.parameters) == {"points"} and other.lenses[0].levels == 5
    # Parameters before the name that they need, in whatever order an address has them.
    read = Study.from_flat(
        {"denoiser.of.rank": "2", "denoiser.of": "Gaussian", "denoiser": "Perturbed"}
    )
    assert read.denoiser.of.rank == 2


def test_what_version_1_could_say_keeps_its_hash():
    known = {
        "132b26be3e47": {},
        "b1af76068442": {
            "process": {"name": "EDM", "sigma_max": 70},
            "grid": {"name": "karras", "steps": 5},
        },
    }
    assert [Study(study=1, **said).hash[:12] for said in known.values()] == list(known)
    assert Study(study=1).to_dict()["study"] == 2


def test_a_file_is_named_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_FILES", str(tmp_path / "files"))
    np.save(tmp_path / "cloud.npy", np.array([[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]]))
    (tmp_path / "study.yaml").write_text(
        "data: {name: points, file: cloud.npy}\ndenoiser: Empirical\nseeds: {count: 2}\n"
    )
    study = Study.load(tmp_path / "study.yaml")
    key = hashlib.sha256((tmp_path / "cloud.npy").read_bytes()).hexdigest()
    assert study.data.file == key and study == Study.from_query(study.to_query())
    assert study == Study().changed(
        {"data": "points", "data.file": "cloud.npy", "denoiser": "Empirical", "seeds.count": 2},
        folder=tmp_path,
    )
    (tmp_path / "cloud.npy").unlink()
    assert build(study).data.points.tolist() == [[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]]
    for path in ("cloud.npy", "/etc/passwd", "../cloud.npy", 7):  # of a request
        with pytest.raises(StudyError, match=r"data\.file was .*the SHA-256 of a stored file"):
            Study.from_flat({"data": "points", "data.file": path})
    (tmp_path / "files" / key).write_bytes(b"another")
    with pytest.raises(StudyError, match="was changed: its content has the SHA-256"):
        build(study)
    with pytest.raises(StudyError, match=r"is not in .*give the study its path once more"):
        build(study.changed({"data.file": "0" * 64}))
    with pytest.raises(StudyError, match="names no file yet"):
        build(Study(data="points"))


def test_a_name_alone_stands_for_its_defaults():
    study = Study.parse("data: moons\nprocess: EDM\nsampler: {name: DDIM, eta: 0.5}\n")
    assert study == Study(
        data={"name": "moons"}, process="EDM", sampler={"name": "DDIM", "eta": 0.5}
    )
    assert (study.data.noise, study.process.sigma_max, study.sampler.eta) == (0.08, 80.0, 0.5)
    assert Study() == Study.parse("{}") == Study.from_flat({}) == Study.from_query("")


def test_the_flat_form():
    flat = Study(process={"name": "VP", "beta_max": 15.0}).to_flat()
    assert flat["process"] == "VP" and flat["process.beta_max"] == 15.0
    assert flat["record.fields"] == "x,denoised" and flat["seeds.count"] == 256
    query = Study().to_query()
    assert "record.fields=x,denoised" in query and "grid.steps=32" in query
    short = Study(sampler="DPMSolverPP:order=3", denoiser="Perturbed:of=Gaussian:of.rank=1")
    assert short.sampler.order == 3 and short.denoiser.of.rank == 1


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("process: {name: VP, beta_max: -1}",
         {"process.beta_max": ["process.beta_max was -1", "greater than 0 and at most 1000"]}),
        ("process: {name: EDN}", {"process": ["process was 'EDN'", "mean 'EDM'", "EDM, EqualSNR"]}),
        ("process: EDN", {"process": ["process was 'EDN'", "mean 'EDM'"]}),
        ("process: {beta_max: 3}", {"process": ["process was", "must be one of Blurring, Cosine"]}),
        ("process: 7", {"process": ["process was 7", "SubVP, VE, VP"]}),
        ("process: {name: VP, bta_max: 1}",
         {"process.bta_max": ["process VP has no parameter 'bta_max'", "beta_min, beta_max"]}),
        ("denoiser: {name: Perturbed, of: {name: Spliced, above: {name: Gaussian, rnk: 1}}}",
         {"denoiser.of.above.rnk": ["denoiser.of.above Gaussian has no", "mean 'rank'"]}),
        ("denoiser: {name: Perturbed, of: {rank: 1}}",
         {"denoiser.of": ["denoiser.of was given without a name"]}),
        ("lenses: [{name: teleportation, levls: 1}]",
         {"lenses.teleportation.levls": ["lenses teleportation has no", "mean 'levels'"]}),
        ("lenses: [output, output]", {"lenses": ["held output twice"]}),
        ("grid: {name: times, t: [1, x]}", {"grid.t.1": ["grid.t.1 was 'x'", "a finite number"]}),
        ("data: {name: digits, size: 10}",
         {"data.size": ["data digits has no parameter 'size'", "none"]}),
        ("grid: {name: karras, steps: 0}",
         {"grid.steps": ["grid.steps was 0", "whole number, at least 1 and at most 10000"]}),
        ("grid: {name: karras, steps: 2.5}", {"grid.steps": ["grid.steps was 2.5", "whole"]}),
        ("grid: {name: karras, steps: true}", {"grid.steps": ["grid.steps was True", "whole"]}),
        ("process: {name: VP, beta_max: true}",
         {"process.beta_max": ["process.beta_max was True", "a finite number"]}),
        ("seeds: {count: true}", {"seeds.count": ["seeds.count was True", "number"]}),
        ("grid: {name: karras, steps: null}", {"grid.steps": ["grid.steps was None", "whole"]}),
        ("grid: {name: karras, final: end}",
         {"grid.final": ["grid.final was 'end'", "'stop', 'denoise'"]}),
        ("sampler: {name: DDIM, eta: .nan}", {"sampler.eta": ["sampler.eta was nan", "finite"]}),
        ("sampler: {name: DDIM, eta: .inf}", {"sampler.eta": ["sampler.eta was inf", "finite"]}),
        (f"grid: {{name: karras, steps: {10**400}}}",
         {"grid.steps": ["grid.steps was 100", "10000"]}),
        ("seeds: {count: 0}", {"seeds.count": ["seeds.count was 0", "a whole number, at least 1"]}),
        ("seeds: {number: 4}", {"seeds.number": ["'number'", "first, count"]}),
        ("seeds: 5", {"seeds": ["seeds was 5"]}),
        ("record: {fields: [x, speed]}", {"record.fields.1": ["'speed'", "'x', 'denoised'"]}),
        ("record: {fields: []}", {"record.fields": ["record.fields was", "at least 1"]}),
        ("record: {every: 0}", {"record.every": ["record.every was 0", "at least 1"]}),
        ("dtype: float16", {"dtype": ["dtype was 'float16'", "'float32', 'float64'"]}),
        ("device: tpu", {"device": ["device was 'tpu'", "'cpu', 'cuda'"]}),
        ("study: 3", {"study": ["study was 3", "versions 1 and 2"]}),
        (f"study: 0x{'f' * 5000}", {"study": ["study was ", "versions 1 and 2"]}),
        ("smapler: Heun", {"smapler": ["no entry 'smapler'", "mean 'sampler'", "grid"]}),
        ("self: 1", {"self": ["no entry 'self'", "sampler"]}),
        ("process: EDM\ngrid: {steps: -1, name: karras}\ndtype: x",
         {"grid.steps": ["was -1"], "dtype": ["was 'x'"]}),
        ("", {"file": ["a study is a mapping"]}),
        ("- a\n- b", {"file": ["a study is a mapping"]}),
        ("1: 2", {"file": ["a study is a mapping"]}),
        ("data: [", {"file": ["not valid YAML or JSON"]}),
        ("data: !!python/object:os.system {}", {"file": ["not valid YAML or JSON"]}),
        ("a: &a [x]\nb: *a", {"file": ["aliases", "not part of the study format"]}),
        ("[" * 5000, {"file": ["not valid YAML or JSON"]}),
    ],
)  # fmt: skip
def test_problems_name_the_path_the_value_and_what_is_allowed(text, problems):
    with pytest.raises(StudyError) as caught:
        Study.parse(text)
    assert set(caught.value.problems) == set(problems)
    for path, pieces in problems.items():
        sentence = caught.value.problems[path]
        assert sentence in str(caught.value) and sentence.endswith(".")
        for piece in pieces:
            assert piece in sentence, sentence


def test_a_study_that_contains_itself_is_refused():
    endless = {"name": "Perturbed"}
    endless["of"] = endless
    with pytest.raises(StudyError, match="at most 8 are read, and none may contain itself"):
        Study(denoiser=endless)


def test_a_bomb_of_aliases_is_refused_before_it_goes_off():
    rows = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    rows += [
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    with pytest.raises(StudyError, match="aliases"):
        Study.parse("\n".join(rows))


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(StudyError, match=f"{re.escape(str(path))} cannot be read"):
            Study.load(path)
    for name in ("a\0b", "\ud800", "a" * 6000):  # which no file can have
        for kind, error in ((Study, StudyError), (SweepSpec, SweepError), (Training, StudyError)):
            with pytest.raises(error, match="cannot be read: ") as told:
                kind.load(name)
            assert str(told.value).isprintable() and len(str(told.value)) < 300


def test_salvage_of_two_problems_with_one_entry():
    study, problems = Study.salvage({"record.fields": "a,b", "record.every": "3", "data": "moons"})
    assert list(problems) == ["record.fields.0", "record.fields.1"]
    assert (study.record, study.data.name) == (Study(record={"every": 3}).record, "moons")


@pytest.mark.parametrize(
    ("flat", "path", "piece"),
    [
        ({"grid_stps": 3}, "grid.stps", "has no parameter 'stps'"),
        ({"gird_steps": 3}, "gird_steps", "mean 'grid.steps'"),
        ({"dtype_x": 3}, "dtype.x", "no entry 'dtype.x'"),
        ({"denoiser": "Perturbed", "denoiser.of.rnk": 3}, "denoiser.of.rnk", "mean 'rank'"),
        ({"lenses": "output", "lenses.flow.samples": 3}, "lenses.flow.samples", "it names output"),
        ({"grid.steps": "many"}, "grid.steps", "grid.steps was 'many'"),
        ({"grid.steps": ""}, "grid.steps", "grid.steps was ''"),
        ({"seeds": 5}, "seeds", "first, count"),
        ({"record.fields": "x,speed"}, "record.fields.1", "'speed'"),
        ({"record.fields": ""}, "record.fields", "at least 1"),
        ({"process": "VQ", "process.beta_max": 1}, "process", "process was 'VQ'"),
        ({"process.beta_max": -1}, "process.beta_max", "greater than 0"),
        ({"sampler": "Euler", "sampler.eta": 1}, "sampler.eta", "Euler has no parameter 'eta'"),
    ],
)
def test_salvage_leaves_out_what_cannot_be_read_and_keeps_the_rest(flat, path, piece):
    """One bad entry of a URL does not cost the others."""
    with pytest.raises(StudyError) as caught:
        Study.from_flat(flat)
    assert piece in caught.value.problems[path]
    others = {"data": "moons", "data.noise": "0.2", "seeds.count": "12", "grid.final": "denoise"}
    study, problems = Study.salvage({**flat, **others})
    assert problems == {path: caught.value.problems[path]}
    assert (study.data.name, study.data.noise, study.grid.final) == ("moons", 0.2, "denoise")
    assert study.seeds.count == 12 or "seeds" in flat
    assert study.grid.steps == 32 and study.process.name == "VP"


@settings(max_examples=10)
@given(st.dictionaries(
    st.one_of(st.sampled_from(list(Study().to_flat())), st.text(max_size=8)),
    st.one_of(st.text(max_size=6), st.sampled_from(["VP", "Heun", "3", "-1", "nan", "x,noise"])),
))  # fmt: skip
def test_salvage_always_gives_a_study(flat):
    study, problems = Study.salvage(flat)
    assert isinstance(study, Study)
    assert all(isinstance(sentence, str) and sentence for sentence in problems.values())
    if not problems:
        assert study == Study.from_flat(flat)


def test_changed_resets_a_section_whose_entry_changes():
    study = Study(
        process={"name": "VP", "beta_max": 15.0},
        data={"name": "moons", "noise": 0.3, "size": 50},
        grid={"name": "karras", "steps": 9, "final": "denoise", "exponent": 3.0},
    )
    same = study.changed({"process": "VP", "grid.steps": 5})
    assert (same.process.beta_max, same.grid.steps, same.grid.exponent) == (15.0, 5, 3.0)
    other = study.changed({"process": "EDM", "data": "ring", "data.modes": 3})
    assert other.process == Study(process="EDM").process
    assert (other.data.modes, other.data.size) == (3, 1000)
    assert other.grid == study.grid
    grid = study.changed({"grid": "uniform"}).grid
    assert (grid.name, grid.steps, grid.final) == ("uniform", 9, "denoise")
    with pytest.raises(StudyError, match="Euler has no parameter 'eta'"):
        study.changed({"sampler": "Euler", "sampler.eta": 1.0})


def test_seeds_beyond_what_json_can_hold_are_refused():
    assert Study(seeds={"first": 2**53}).seeds.first == 2**53
    with pytest.raises(StudyError, match=r"seeds\.first was"):
        Study(seeds={"first": 2**53 + 1})


def test_a_study_is_a_value():
    study = Study()
    with pytest.raises(AttributeError, match="frozen"):
        study.dtype = "float64"
    assert {study: 1}[Study()] == 1
    assert not any(isinstance(v, float) and math.isnan(v) for v in study.to_flat().values())


def test_two_hundred_malformed_files_are_each_refused_with_a_sentence(
    tmp_path, monkeypatch, record_property
):
    """Soon (the wide bound holds on a busy machine), and nothing of what they say is executed."""
    monkeypatch.chdir(tmp_path)
    took = []

    @settings(max_examples=200, database=None, suppress_health_check=list(HealthCheck))
    @given(malformed)
    def check(text):
        started = time.process_time()
        with pytest.raises(StudyError) as caught:
            Study.parse(text)
        took.append(time.process_time() - started)
        assert took[-1] < 10.0, text[:200]
        said = str(caught.value)
        assert said.endswith(".") and said.isprintable() and len(said) < 4000
        assert caught.value.problems and "Traceback" not in said
        assert not os.path.exists(MARK)

    check()
    record_property("measured", f"a malformed study is refused in at most {max(took):.2f} s")


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("process: {name: vp}", "process was 'vp' (did you mean 'VP'?)"),
        ("process: {name: VP, beta_mx: 1}", "no parameter 'beta_mx' (did you mean 'beta_max'?)"),
        (
            "denoiser: {name: Perturbed, of: {name: Perturbed, of: {name: Gaussian, rnk: 1}}}",
            "denoiser.of.of Gaussian has no parameter 'rnk' (did you mean 'rank'?)",
        ),
        ("grid: {name: karras, final: stopp}", "'stopp' (did you mean 'stop'?); it must be one of"),
        ("dtype: float46", "dtype was 'float46' (did you mean 'float64'?); it must be"),
        (
            "process: {beta_max: 3}",
            "process was given without a name; it must be one of Blurring, ",
        ),
        ("data: ring\ndata: moons", "'data' stands there twice"),
        ('{"data": "ring", "data": "moons"}', "'data' stands there twice"),
        ("data: !ring {}", "tags are not part of the study format, and there is '!ring'"),
        ("[" * 60, "it is nested too deeply"),
        ("#" * 2**16, "it is longer than 32768 characters"),
        (f"grid: {{name: karras, steps: 0x{'f' * 9000}}}", "was a number of too many digits; it"),
        ('{"data":\n\t{"name":"ring",\n\t"modes":0}}', "data.modes was 0"),
        ("\n".join(f"a{i}: 1" for i in range(20)), "There are 12 more problems."),
    ],
)
def test_sentences_name_what_is_near_and_stay_short(text, piece):
    with pytest.raises(StudyError) as caught:
        Study.parse(text)
    assert piece in str(caught.value)


def test_the_schema_takes_what_a_study_takes():
    jsonschema = pytest.importorskip("jsonschema")
    schema = Study.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    checker = jsonschema.Draft202012Validator(schema)

    @settings(max_examples=3)
    @given(sections())
    def check(nested):
        checker.validate(nested)
        checker.validate(Study(**nested).to_dict())

    check()
    checker.validate({})
    checker.validate({"process": "EDM", "sampler": "DPMSolverPP:order=3"})
    checker.validate(DEEP)
    karras = schema["$defs"]["Grid_karras"]
    assert karras["description"].startswith("Equal steps in") and karras["required"] == ["name"]
    steps = karras["properties"]["steps"]
    assert (steps["minimum"], steps["maximum"], steps["default"]) == (1, 10_000, 18)
    assert steps["description"]
    for wrong in (
        {"process": "EDN"},
        {"process": {"beta_max": 3}},
        {"grid": {"name": "karras", "steps": 0}},
        {"grid": {"name": "karras", "exponent": 0}},
        {"grid": {"name": "karras", "stepz": 3}},
        {"record": {"fields": []}},
        {"study": 3},
        {"denoiser": {"name": "Perturbed", "of": {"name": "Gaussian", "rnk": 1}}},
        {"smapler": "Heun"},
    ):
        assert not checker.is_valid(wrong), wrong
        with pytest.raises(StudyError):
            Study(**wrong)
