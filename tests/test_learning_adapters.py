"""Networks of others as denoisers: each read as what it was made from, an exact denoiser."""

import base64
import io
import json
import os
import sys
import zipfile

import numpy as np
import pytest
import torch
from helpers import normals
from safetensors.torch import save_file

import workbench as wb
from workbench import registry
from workbench.denoisers.checkpoints import CheckpointError
from workbench.denoisers.guard import MismatchError
from workbench.learning.adapters.card import from_card, with_card
from workbench.learning.adapters.edm import from_edm
from workbench.learning.adapters.flow import from_flow
from workbench.learning.adapters.onnx import from_onnx
from workbench.learning.adapters.torchscript import from_torchscript
from workbench.studies import explore, files
from workbench.studies.explore import refined
from workbench.studies.run import build


def law() -> wb.Gaussian:
    cov = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
    return wb.Gaussian(torch.tensor([0.4, -0.2], dtype=torch.float64), cov)


LEVELS = (0.05, 0.6, 4.0)


def same(net: wb.Neural, generator) -> None:
    """Whatever the process it is asked under."""
    x = normals(generator, 5, 2)
    for rho in LEVELS:
        for alpha in (1.0, 0.6):
            found = net.denoise(x, alpha, alpha * rho)
            torch.testing.assert_close(
                found, law().denoise(x, alpha, alpha * rho), rtol=1e-7, atol=1e-8
            )


class Raw(torch.nn.Module):
    """F of an exact denoiser inside EDM's other scalings, in the variables of their code."""

    def __init__(self, kind: str, classes: int = 0) -> None:
        super().__init__()
        self.kind, self.classes = kind, classes
        self.scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x, noise, class_labels=None):
        assert (class_labels is None) == (not self.classes)
        unit = (-1, 1)
        if self.kind == "VPPrecond":  # noise = (M - 1) t;  sigma(t) of the linear schedule
            t = noise / 999
            sigma = ((0.5 * 19.9 * t**2 + 0.1 * t).exp() - 1).sqrt().reshape(unit)
            y, skip, out = x * (sigma**2 + 1).sqrt(), 1.0, -sigma
        elif self.kind == "VEPrecond":
            sigma = (2 * noise.exp()).reshape(unit)
            y, skip, out = x, 1.0, sigma
        else:
            sigma = (4 * noise).exp().reshape(unit)
            y = x * (sigma**2 + 0.7**2).sqrt()
            skip = 0.7**2 / (sigma**2 + 0.7**2)
            out = sigma * 0.7 / (sigma**2 + 0.7**2).sqrt()
        denoised = torch.cat(
            [law().denoise(one[None], 1.0, float(s)) for one, s in zip(y, sigma, strict=True)]
        )
        if class_labels is not None:
            denoised = denoised + class_labels.sum(1, keepdim=True)
        return self.scale * (denoised - skip * y) / out


@pytest.mark.parametrize("kind", ["EDMPrecond", "Precond", "VPPrecond", "VEPrecond"])
def test_a_network_of_edm_is_the_denoiser_it_was_made_from(kind, generator, tmp_path):
    """Weights and card of files; the weights are those of the file, not of the module."""
    card = {"preconditioner": kind, "sigma_data": 0.7, "event_shape": [2]}
    save_file({"scale": torch.tensor(1.0, dtype=torch.float64)}, tmp_path / "n.safetensors")
    (tmp_path / "n.json").write_text(json.dumps(card))
    same(from_edm(Raw(kind).double(), tmp_path / "n.safetensors"), generator)
    conditional = {**card, "label_dim": 3}
    net = from_edm(Raw(kind, 3).double(), tmp_path / "n.safetensors", conditional, label=1)
    x = normals(generator, 4, 2)
    torch.testing.assert_close(net.denoise(x, 1.0, 0.6), law().denoise(x, 1.0, 0.6) + 1)
    none = from_edm(Raw(kind, 3).double(), tmp_path / "n.safetensors", conditional)
    torch.testing.assert_close(none.denoise(x, 1.0, 0.6), law().denoise(x, 1.0, 0.6))


def test_what_is_no_network_of_edm_is_said(tmp_path):
    file, card = tmp_path / "n.safetensors", {"preconditioner": "EDMPrecond", "event_shape": [2]}
    torch.save({"scale": torch.ones(())}, tmp_path / "n.pkl")
    with pytest.raises(CheckpointError, match=r"is a pickle.*Convert it where you trust it"):
        from_edm(Raw("EDMPrecond"), tmp_path / "n.pkl", card)
    save_file({"other": torch.ones(2)}, file)
    with pytest.raises(CheckpointError, match=r"are not those of Raw: .*other is \(2,\) and must"):
        from_edm(Raw("EDMPrecond"), file, card)
    save_file({"scale": torch.tensor(float("nan"))}, file)
    with pytest.raises(CheckpointError, match="not finite, in scale"):
        from_edm(Raw("EDMPrecond"), file, card)
    save_file({"scale": torch.ones(())}, file)
    with pytest.raises(CheckpointError, match=r"n\.json cannot be read.*A card is a JSON file"):
        from_edm(Raw("EDMPrecond"), file)
    (tmp_path / "n.json").write_text("[1")
    with pytest.raises(CheckpointError, match=r"n\.json is no JSON"):
        from_edm(Raw("EDMPrecond"), file)
    for change, match in (
        ({"preconditioner": "iDDPM"}, r"preconditioner was 'iDDPM'; it must be one of EDMPrecond"),
        ({"sigma": 1}, r"the card says 'sigma'; it may say"),
    ):
        with pytest.raises(CheckpointError, match=match):
            from_edm(Raw("EDMPrecond"), file, card | change)
    with pytest.raises(ValueError, match=r"label was 1; .* left out: it knows no classes"):
        from_edm(Raw("EDMPrecond"), file, card, label=1)


def velocity(x, s, data_at: int, path: str):
    """The exact velocity in a model's own time s: the derivative of the state along its path."""
    t = 1 - s if data_at == 1 else s
    process = wb.RectifiedFlow() if path == "linear" else wb.Cosine(offset=0.0)
    level = t[:1].double()
    v = wb.Diffusion(process, law()).velocity(x, float(level))
    return -v if data_at == 1 else v


@pytest.mark.parametrize("data_at", [0, 1])
@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_a_flow_is_the_denoiser_it_was_made_from(data_at, path, generator):
    """Either direction of time, its units, either sign, and the data in its place."""
    own = lambda x, s: velocity(x, s, data_at, path)  # noqa: E731
    for model, given in (
        (own, {}),
        (lambda x, s: own(x, s / 1000), {"time_scale": 1000.0}),
        (lambda x, s: -own(x, s), {"answers": "minus velocity"}),
    ):
        same(from_flow(model, (2,), data_at, path, dtype=torch.float64, **given), generator)
    process = wb.RectifiedFlow() if path == "linear" else wb.Cosine(offset=0.0)
    data = lambda x, s: wb.Diffusion(process, law()).denoised(  # noqa: E731
        x, float(1 - s[0] if data_at == 1 else s[0])
    )
    net = from_flow(data, (2,), data_at, path, "denoised", dtype=torch.float64)
    same(net, generator)


def test_a_flow_of_the_other_sign_is_refused_and_its_label_handed_on(generator):
    points = law().mean + normals(generator, 64, 2) @ torch.linalg.cholesky(law().cov).T
    right = lambda x, s: velocity(x, s, 1, "linear")  # noqa: E731
    from_flow(right, (2,), points=points, dtype=torch.float64)
    with pytest.raises(MismatchError, match="read as velocity of the opposite sign"):
        from_flow(right, (2,), answers="minus velocity", points=points, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"data_at was 2; it must be one of \(0, 1\)"):
        from_flow(right, data_at=2)
    labelled = lambda x, s, y: right(x, s) + 0 * x + y[:, None]  # noqa: E731
    net = from_flow(labelled, (2,), condition=2, keyword="y", dtype=torch.float64)
    x = normals(generator, 3, 2)
    t = 0.6 / 1.6  # of rho 0.6: D = x - t v in its scale
    wanted = law().denoise(x, 1.0, 0.6) + t * 2
    torch.testing.assert_close(net.denoise(x, 1.0, 0.6), wanted)


class Scripted(torch.nn.Module):
    """The noise of the standard normal law, under any process: sigma x at length one."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.unit * x * torch.sin(0.5 * torch.pi * t).unsqueeze(1)


def test_a_torchscript_file_and_plain_weights_are_what_their_card_says(generator, tmp_path):
    card = {"predicts": "noise", "process": {"name": "Cosine", "offset": 0.0}, "event_shape": [2]}
    module, file = Scripted().double(), tmp_path / "net.pt"
    torch.jit.save(torch.jit.script(module), str(file))
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    for name in ("net.json", "w.json"):
        (tmp_path / name).write_text(json.dumps(card))
    unit = wb.Gaussian(torch.zeros(2).double(), torch.eye(2).double())
    x = normals(generator, 4, 2)
    for net in (from_torchscript(file), from_card(module, tmp_path / "w.safetensors")):
        for rho in LEVELS:
            torch.testing.assert_close(net.denoise(x, 1.0, rho), unit.denoise(x, 1.0, rho))
    points = normals(generator, 64, 2)
    from_torchscript(file, points=points)
    with pytest.raises(MismatchError, match="read as noise its loss is"):
        from_torchscript(file, {**card, "predicts": "score"}, points=points)
    with pytest.raises(CheckpointError, match=r"is no TorchScript file .*torch\.jit\.save"):
        from_torchscript(tmp_path / "w.safetensors", card)
    for change, match in (
        ({"predicts": "magic"}, "predicts was 'magic'"),
        ({"process": "VVP"}, "names the process 'VVP'; it must be one of"),
        ({"shape": [2]}, "says 'shape', which is not known"),
        ({"classes": 2}, "takes no third argument"),
    ):
        with pytest.raises(CheckpointError, match=match):
            with_card(module, card | change)
    with pytest.raises(CheckpointError, match="the card lacks predicts"):
        with_card(module, {"process": "VP", "event_shape": [2]})
    with pytest.raises(ValueError, match="label was 1; for this network it must be left out"):
        with_card(module, card, label=1)


#: x sin(pi t / 2): the noise of standard normal data under the cosine process, as an ONNX graph.
GRAPH = (
    "CAk6nwEKDgoBdAoBYxIBYSIDTXVsCgsKAWESAXMiA1NpbgoVCgFzCgJheBIBdSIJVW5zcXVlZXplCg4KAXgKAXUSAXki"
    "A011bBIBZyoLEAEiBNsPyT9CAWMqCwgBEAc6AQFCAmF4WhQKAXgSDwoNCAESCQoDEgFuCgIIAloQCgF0EgsKCQgBEgUK"
    "AxIBbmIUCgF5Eg8KDQgBEgkKAxIBbgoCCAJCBAoAEBE="
)


def test_an_onnx_graph_is_what_its_card_says(generator, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -e '.[models]'")
    card = {"predicts": "noise", "process": {"name": "Cosine", "offset": 0.0}, "event_shape": [2]}
    (tmp_path / "net.onnx").write_bytes(base64.b64decode(GRAPH))
    (tmp_path / "net.json").write_text(json.dumps(card))
    net, x = from_onnx(tmp_path / "net.onnx"), normals(generator, 4, 2).float()
    for rho in LEVELS:
        torch.testing.assert_close(net.denoise(x, 1.0, rho), x / (1 + rho**2))
    level = net.at(1.0, 1.0)
    for derived in (
        lambda: level.jacobian(x),
        lambda: level.jvp(x, x),
        lambda: level.slope(x),
        lambda: level.rate(x, 0.0, 1.0),
        lambda: level.log_prob(x),
    ):
        with pytest.raises(NotImplementedError, match="gives no derivatives"):
            derived()
    with pytest.raises(CheckpointError, match="is no ONNX file that can be run"):
        from_onnx(tmp_path / "net.json", card)


def carded(folder, name: str, content: bytes):
    """A network of noise with its card beside it."""
    card = {"predicts": "noise", "process": {"name": "Cosine", "offset": 0.0}, "event_shape": [2]}
    (folder / name).write_bytes(content)
    (folder / name).with_suffix(".json").write_text(json.dumps(card))
    return folder / name


def of_file(file) -> wb.Study:
    return wb.Study(
        data="gaussian",
        denoiser={"name": "Neural", "file": file},
        process="EDM",
        seeds={"count": 8},
        dtype="float64",
        device="cpu",
    )


def test_a_study_names_an_onnx_graph_with_its_card(generator, tmp_path, monkeypatch):
    """Kept as one file, of the same bytes whatever it is called; a card is needed."""
    monkeypatch.setenv("WORKBENCH_FILES", str(tmp_path / "files"))
    graph = base64.b64decode(GRAPH)
    (tmp_path / "alone.onnx").write_bytes(graph)
    with pytest.raises(files.FileError, match=r"lay a card beside it, alone\.json, such as"):
        files.keep(tmp_path / "alone.onnx")
    place = carded(tmp_path, "net.onnx", graph)
    key = files.keep(place)
    assert key == files.keep(carded(tmp_path, "other.onnx", graph))
    with zipfile.ZipFile(files.place(key)) as kept:
        assert kept.namelist() == ["network.json", "network.onnx"]
        assert kept.read("network.onnx") == graph
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -e '.[models]'")
    law = wb.Gaussian(torch.zeros(2).double(), torch.eye(2).double())
    net, x = build(of_file(place)).diffusion.denoiser, normals(generator, 4, 2)
    torch.testing.assert_close(
        net.denoise(x, 1.0, 0.7), law.denoise(x, 1.0, 0.7), rtol=1e-5, atol=0
    )
    assert wb.run(of_file(place))["final"].shape == (8, 2)
    for late in (False, True):  # what it draws without derivatives is drawn
        seen = explore(of_file(place), soon=late)
        notes = refined(seen.study, seen.run, lambda *_: None).notes(seen.run)
        assert seen.portrait["flow"].size and not seen.portrait["log_density"].size
        assert any("No density is drawn: an ONNX" in one for one in (*seen.notes, *notes))
    outside = graph + b"location"
    with pytest.raises(CheckpointError, match="tensors that lie in other files"):
        wb.Neural.load(files.place(files.keep(carded(tmp_path, "outside.onnx", outside))))


class Writes(torch.nn.Module):
    """A TorchScript program that writes a file wherever it is told to."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.place)
        return x * torch.sin(0.5 * torch.pi * t).unsqueeze(1)


def test_a_study_opens_torchscript_where_it_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_FILES", str(tmp_path / "files"))
    written = tmp_path / "written"
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Writes(str(written))), buffer)
    study = of_file(carded(tmp_path, "net.pt", buffer.getvalue()))
    (tmp_path / "bare.pt").write_bytes(buffer.getvalue())
    for trusted in ("", "0"):
        monkeypatch.setenv("WORKBENCH_TORCHSCRIPT", trusted)
        for one in (study, of_file(tmp_path / "bare.pt")):
            with pytest.raises(ValueError, match="a TorchScript program, which may write files"):
                wb.run(one)
    assert not written.exists()
    monkeypatch.setenv("WORKBENCH_TORCHSCRIPT", "1")
    assert wb.run(study)["final"].shape == (8, 2) and written.exists()
    with pytest.raises(ValueError, match=r"the card .* cannot be read"):
        wb.run(of_file(tmp_path / "bare.pt"))
    torch.save({"unit": torch.ones(())}, tmp_path / "net.pt")  # a pickle, with a card
    with pytest.raises(ValueError, match="is no TorchScript file"):
        wb.run(of_file(tmp_path / "net.pt"))


def test_no_page_opens_a_program(monkeypatch):
    """The server takes the trust away before it does anything else."""
    monkeypatch.setenv("WORKBENCH_TORCHSCRIPT", "1")
    from workbench.ui.server import ServeError, serve

    with pytest.raises(ServeError, match="must be from 1 to 65535"):
        serve(port=99_999)
    assert "WORKBENCH_TORCHSCRIPT" not in os.environ


def test_without_onnxruntime_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        from_onnx("net.onnx", {})


def test_a_format_of_a_plugin_opens_its_files_in_a_study(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_FILES", str(tmp_path / "files"))
    law = wb.Gaussian.from_data(wb.DATASETS["gaussian"]())
    (tmp_path / "mine.net").write_bytes(b"MINE 2.0")
    with registry.kept():

        @wb.register(kind="format")
        def mine(path, label, guidance):
            """A file of eight bytes."""
            if not path.read_bytes().startswith(b"MINE"):
                return None
            return wb.Neural(lambda x, t: law.denoise(x, 1.0, t[0].item()), "denoised", wb.EDM(),
                             (2,), dtype=torch.float64)  # fmt: skip

        study = wb.Study(
            data="gaussian",
            denoiser={"name": "Neural", "file": tmp_path / "mine.net"},
            process="EDM",
            seeds={"count": 8},
            dtype="float64",
            device="cpu",
        )
        run = wb.run(study)
        exact = wb.run(study.changed({"denoiser": "Gaussian"}))
    np.testing.assert_allclose(run["final"], exact["final"], rtol=1e-9, atol=1e-9)
