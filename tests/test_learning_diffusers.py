"""Networks of diffusers as denoisers: the same samples as by its own schedulers."""

import html
import json
import re
import time

import pytest
import torch

import workbench as wb
from workbench.denoisers.checkpoints import CheckpointError
from workbench.learning.adapters.diffusers import from_diffusers
from workbench.learning.adapters.latents import Latents
from workbench.studies import files
from workbench.ui.broker import Broker, use
from workbench.ui.training import TrainingPage

SEEDS = range(3)


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def unet(diffusers, **options):
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, **options,
    )  # fmt: skip
    return model.eval()


def start() -> torch.Tensor:
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def theirs(model, scheduler, steps: int, **given) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    x = start() * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        answer = model(scaled, t, return_dict=False, **given)[0]
        x = scheduler.step(answer, t, x, return_dict=False)[0]
    return x


def levels(scheduler) -> list[float]:
    """Noise levels of a table's nodes, down to none."""
    kept = scheduler.alphas_cumprod[scheduler.timesteps.long()].double()
    return [*((1 - kept) / kept).sqrt().tolist(), 0.0]


@pytest.mark.parametrize(
    ("kind", "betas"),
    [("epsilon", "linear"), ("sample", "linear"), ("v_prediction", "squaredcos_cap_v2")],
)
def test_a_saved_pipeline_samples_as_its_own_ddim(kind, betas, diffusers, tmp_path):
    scheduler = diffusers.DDIMScheduler(
        prediction_type=kind, beta_schedule=betas, clip_sample=False, timestep_spacing="trailing"
    )
    model = unet(diffusers)
    diffusers.DDIMPipeline(model, scheduler).save_pretrained(tmp_path)
    net = from_diffusers(tmp_path)
    assert "trained at 1000 noise levels, sigma/alpha 0.0" in repr(net)
    wanted = theirs(model, scheduler, 8)
    process, rho = net.process, torch.tensor(levels(scheduler), dtype=torch.float64)
    grid = wb.Grid.times(process, process.time_of(rho).tolist())
    found = wb.sample(wb.Diffusion(process, net), wb.DDIM(), grid, SEEDS, x=start()).final
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_a_flow_model_samples_as_its_own_euler(diffusers):
    """The shift moves its grid, and not what the network means."""
    scheduler, model = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), unet(diffusers)
    net = from_diffusers(model, scheduler)
    wanted = theirs(model, scheduler, 8)
    grid = wb.Grid.times(net.process, scheduler.sigmas.double().tolist())
    found = wb.sample(wb.Diffusion(net.process, net), wb.Euler(), grid, SEEDS, x=start()).final
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_a_class_conditional_model_is_asked_with_its_label(diffusers):
    scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="trailing")
    model = unet(diffusers, num_class_embeds=4)
    net = from_diffusers(model, scheduler, label=2)
    wanted = theirs(model, scheduler, 6, class_labels=torch.full((3,), 2))
    process = wb.EDM(sigma_max=200.0)  # Euler on x / alpha
    grid = wb.Grid.times(process, scheduler.sigmas.double().tolist())
    x = start() * scheduler.init_noise_sigma
    found = wb.sample(wb.Diffusion(process, net), wb.Euler(), grid, SEEDS, x=x).final
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())
    with pytest.raises(ValueError, match=r"class-conditional; give it a label, 0 to 3"):
        from_diffusers(model, scheduler)
    with pytest.raises(ValueError, match=r"label was 4; it must be 0 to 3"):
        from_diffusers(model, scheduler, label=4)
    with pytest.raises(ValueError, match="knows no classes"):
        from_diffusers(unet(diffusers), scheduler, label=1)


def test_a_score_model_is_asked_with_sigma(diffusers):
    """Of a network with Fourier features diffusers divides the answer by sigma: a score."""
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0)
    model = unet(diffusers, time_embedding_type="fourier", freq_shift=0)
    net, x = from_diffusers(model, scheduler), start()
    with torch.no_grad():
        for sigma in (0.1, 3.0):
            score = model(x, torch.full((3,), sigma), return_dict=False)[0]
            torch.testing.assert_close(net.denoise(x, 1.0, sigma), x + sigma**2 * score)


def test_what_is_not_understood_is_said(diffusers, tmp_path):
    model, table = unet(diffusers), diffusers.DDPMScheduler()
    with pytest.raises(CheckpointError, match=r"holds no model_index\.json"):
        from_diffusers(tmp_path)
    with pytest.raises(CheckpointError, match="a model alone does not say what it predicts"):
        from_diffusers(model)
    with pytest.raises(CheckpointError, match="scheduler EDMEulerScheduler is not understood"):
        from_diffusers(model, diffusers.EDMEulerScheduler())
    diffusers.DDPMPipeline(model, table).save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(CheckpointError, match="from safetensors alone; write them anew"):
        from_diffusers(tmp_path)
    assert (
        "clips its denoised states to ±1; here they are not"
        in from_diffusers(model, table).notes[0]
    )


def test_a_consistency_model_draws_as_its_own_scheduler(diffusers):
    """One step from the largest noise: the function itself."""
    scheduler = diffusers.CMStochasticIterativeScheduler()
    model = unet(diffusers)
    net = from_diffusers(model, scheduler)
    assert "consistency function" in net.notes[0]
    wanted = theirs(model, scheduler, 1)
    sigma = float(scheduler.sigmas[0])
    with torch.no_grad():
        found = net.denoise(scheduler.init_noise_sigma * start(), 1.0, sigma)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_transformer_with_classes_leaves_its_variance_out(diffusers):
    """DiT: its null class stands behind the last; half of the channels are a variance."""
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
        sample_size=8, patch_size=2, num_embeds_ada_norm=5, norm_num_groups=4,
    ).eval()  # fmt: skip
    scheduler = diffusers.DDPMScheduler()
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    kept = scheduler.alphas_cumprod[300].double()
    alpha, sigma = kept.sqrt().item(), (1 - kept).sqrt().item()
    with torch.no_grad():
        for label, asked in ((2, 2), (None, 5)):
            given = {"class_labels": torch.full((3,), asked)}
            noise = model(x, torch.full((3,), 300), return_dict=False, **given)[0][:, :4]
            found = from_diffusers(model, scheduler, label=label).denoise(x, alpha, sigma)
            torch.testing.assert_close(found, (x - sigma * noise) / alpha, rtol=1e-4, atol=1e-4)


def test_latents_are_scaled_and_shifted(diffusers):
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=2, latent_channels=2, sample_size=8,
        scaling_factor=0.36, shift_factor=0.12,
    )  # fmt: skip
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    latents = Latents(vae)
    found = latents.encode(images)
    with torch.no_grad():
        plain = vae.encode(images).latent_dist.mode()
        torch.testing.assert_close(found, 0.36 * (plain - 0.12))
        torch.testing.assert_close(latents.decode(found), vae.decode(plain).sample)
    with pytest.raises(CheckpointError, match="has no encode and decode"):
        Latents(unet(diffusers))


def test_a_study_names_a_folder_and_no_code_of_it_is_run(diffusers, tmp_path, monkeypatch):
    """Kept as one file of the same bytes; tried on the data; its one channel is that of images."""
    monkeypatch.setenv("WORKBENCH_FILES", str(tmp_path / "files"))
    model, scheduler = unet(diffusers), diffusers.DDPMScheduler(clip_sample=False)
    folder = tmp_path / "pipe"
    diffusers.DDPMPipeline(model, scheduler).save_pretrained(folder)
    (folder / "unet" / "odd.py").write_text("raise SystemExit")
    key = files.keep(folder)
    assert key == files.keep(folder) and files.is_hash(key)
    net, x = wb.Neural.load(files.place(key)), start()
    torch.testing.assert_close(net.denoise(x, 1.0, 0.7), from_diffusers(folder).denoise(x, 1, 0.7))
    # Its weights are random: it is refused on the data, after it was asked without a channel.
    study = wb.Study(data="digits", denoiser={"name": "Neural", "file": folder})
    with pytest.raises(ValueError, match="denoiser: the network is said to predict noise"):
        wb.run(study)
    config = folder / "unet" / "config.json"
    whole = config.read_text()
    for text, sentence in (
        (json.dumps({**json.loads(whole), "block_out_channels": "x"}), "says of its configuration"),
        ("[" * 50_000, "cannot be read"),
    ):
        config.write_text(text)
        with pytest.raises(CheckpointError, match=sentence):
            wb.Neural.load(files.place(files.keep(folder)))
    config.write_text(whole)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["os", "UNet"]}))
    with pytest.raises(CheckpointError, match="classes of diffusers alone are made"):
        wb.Neural.load(files.place(files.keep(folder)))
    with pytest.raises(files.FileError, match="holds no weights"):
        files.keep(tmp_path / "files")


def test_the_page_of_networks_leads_from_a_folder_to_the_others(diffusers, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_FILES", str(tmp_path / "files"))
    nets = tmp_path / "nets"
    model = unet(diffusers, num_class_embeds=3)
    diffusers.DDPMPipeline(model, diffusers.DDPMScheduler()).save_pretrained(nets / "pipe")
    diffusers.DDPMPipeline(model, diffusers.DDPMScheduler()).save_pretrained(nets / "linked")
    weights = nets / "linked" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to(tmp_path / "secret.safetensors")
    broker = Broker()
    before = use(broker)
    try:
        page = TrainingPage("Networks", "About.", nets)
        page.page()
        page._begin()
        assert page._allowed() == ["pipe"]  # nothing of it lies outside of the folder
        page._on_path("linked")
        assert "there is no network 'linked'" in page.opening.title
        page._on_path("pipe")
        end = time.monotonic() + 120
        while "Frequency" not in page.foreign.object:
            assert time.monotonic() < end, page.opening.title
            time.sleep(0.05)
    finally:
        use(before)
        broker.close()
    address = html.unescape(re.findall(r'href="./gap\?([^"]*)"', page.foreign.object)[0])
    study = wb.Study.from_query(address)
    assert study.denoiser.parameters["label"] == 0  # it is never without a class
    assert files.place(study.denoiser.parameters["file"]).is_file()
    assert (study.data.name, page.opening.title) == ("digits", "")
