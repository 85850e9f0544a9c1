"""Networks as denoisers: discrete times, conditions, guidance, and what is refused."""

import pytest
import torch
from helpers import normals

import workbench as wb


def law(generator) -> wb.Mixture:
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    return wb.Mixture(weights, normals(generator, 2, 3), torch.tensor([0.2, 0.1]).double())


class Exact(torch.nn.Module):
    """The noise prediction of a law, asked with the index of a time, and with a class."""

    def __init__(self, parts, times, process) -> None:
        super().__init__()
        self.parts, self.times, self.process = parts, times, process
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.asked = []

    def forward(self, x, index, label=None):
        self.asked.append(index.detach().clone())
        low = index.floor().long().clamp(0, len(self.times) - 2)
        log = self.process(self.times).rho.log()
        rho = (log[low] + (index - low) * (log[low + 1] - log[low])).exp()
        c = self.process(self.process.time_of(rho))
        out = []
        for i in range(len(x)):
            part = self.parts[-1 if label is None else int(label[i])]
            a, s = c.alpha[i].item(), c.sigma[i].item()
            out.append((x[i] - a * part.denoise(x[i : i + 1], a, s)[0]) / s)
        return self.scale * torch.stack(out)


def exact(generator, **options):
    whole = law(generator)
    parts = [wb.Gaussian(m, v * torch.eye(3).double()) for m, v in
             zip(whole.means, whole.covs, strict=True)]  # fmt: skip
    process, times = wb.VP(), torch.linspace(0.001, 1.0, 400, dtype=torch.float64)
    module = Exact([*parts, whole], times, process)
    return wb.Neural(module, "noise", process, (3,), times=times, **options), parts, whole, module


def test_discrete_times_are_met_between_and_at_whole_indices(generator):
    net, _, whole, module = exact(generator)
    x = normals(generator, 4, 3)
    for alpha, sigma in ((0.9, 0.3), (0.5, 2.0), (1.0, 40.0)):
        torch.testing.assert_close(net.denoise(x, alpha, sigma), whole.denoise(x, alpha, sigma))
    assert any(bool((index != index.round()).any()) for index in module.asked)
    levels = torch.tensor([0.2, 0.7, 1.0, 3.0], dtype=torch.float64)
    one = torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(net.denoise(x, one, levels), whole.denoise(x, one, levels))
    torch.testing.assert_close(net.denoise(x, 1.0, 0.0), x)  # clean states are their own mean
    whole_net, *_, module = exact(generator, whole=True)
    whole_net.denoise(x, 1.0, 0.777)
    assert all(bool((index == index.round()).all()) for index in module.asked)


def test_discrete_times_outside_are_refused(generator):
    net, *_ = exact(generator)
    x = normals(generator, 2, 3)
    for rho in (1e-3, 200.0):
        match = rf"rho was {rho:g}; this network of 400 discrete times knows .* Begin and end"
        with pytest.raises(ValueError, match=match):
            net.denoise(x, 1.0, rho)
    for times in ([0.5], [0.2, 0.1], [0.0, 0.5], [0.5, 1.5]):
        with pytest.raises(ValueError, match=r"times were .* rising, greater than 0 and at most 1"):
            wb.Neural(lambda x, t: x, "noise", wb.VP(), times=times)


def test_conditions_and_guidance_are_those_of_the_exact_parts(generator):
    net, parts, whole, _ = exact(generator, condition=0, unconditional=-1)
    x = normals(generator, 3, 3)
    for label in (0, 1):
        wanted = parts[label].denoise(x, 0.8, 0.5)
        torch.testing.assert_close(net.given(label).denoise(x, 0.8, 0.5), wanted)
        guided = wanted + 1.5 * (wanted - whole.denoise(x, 0.8, 0.5))
        found = net.given(label, guidance=1.5)
        torch.testing.assert_close(found.denoise(x, 0.8, 0.5), guided)
        assert "no" in found.notes[0] and "given" in repr(found)
    torch.testing.assert_close(net.given(None).denoise(x, 0.8, 0.5), whole.denoise(x, 0.8, 0.5))
    # In a run, a derivative and another precision, as any other denoiser.
    process = wb.EDM(sigma_min=0.05, sigma_max=40.0)
    grid = wb.Grid.karras(process, 4, final="stop")
    run, truth = (
        wb.sample(wb.Diffusion(process, one), wb.Heun(), grid, range(2))
        for one in (net.given(1), parts[1])
    )
    torch.testing.assert_close(run.final, truth.final)
    torch.testing.assert_close(
        net.given(1).jacobian(x, 0.8, 0.5), parts[1].jacobian(x, 0.8, 0.5).expand(3, 3, 3)
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"condition": 1}, r"condition was 1, and function takes no third argument; leave it out"),
        ({"guidance": 2.0}, r"guidance was 2; it needs condition and unconditional"),
        ({"guidance": float("nan")}, r"guidance was nan; it must be finite"),
        ({"sigma_data": 0.0}, r"sigma_data was 0.0; it must be positive"),
    ],
)
def test_options_that_do_not_go_together(options, match):
    with pytest.raises(ValueError, match=match):
        wb.Neural(lambda x, t: x, "noise", wb.VP(), **options)


def test_a_module_that_answers_wrongly_is_refused(generator):
    x = normals(generator, 3, 2, 4, 4)

    def refused(module, match):
        net = wb.Neural(module, "noise", wb.VP(), (2, 4, 4), dtype=torch.float64)
        with pytest.raises(ValueError, match=match):
            net.denoise(x, 1.0, 0.5)

    refused(lambda x, t: x[:, :1], r"answered with shape \(3, 1, 4, 4\) to states of .* each\.$")
    refused(lambda x, t: torch.cat([x, x], 1), r"Twice the channels: half are a variance")
    refused(lambda x, t: {"sample": x}, r"answered with dict; it must be a tensor.*\.sample")
    broken = torch.nn.Linear(2, 2)
    broken.weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"1 of the weights of Linear are not finite, first w"):
        wb.Neural(broken, "noise", wb.VP())
