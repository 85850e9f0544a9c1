"""Gradients through a sampler: those of stored activations, in memory that does not grow."""

import pytest
import torch
from helpers import normals
from torch.autograd.graph import saved_tensors_hooks

import workbench as wb
from workbench.denoisers.base import Denoiser
from workbench.sampling import walk
from workbench.sampling.methods import BDIA, BELM, EDICT, DDIMInversion
from workbench.sampling.reversal import reversible

VP, COSINE, EDM = wb.VP(), wb.Cosine(), wb.EDM()


class Net(torch.nn.Module):
    """A small network, preconditioned as EDM: D = skip x + out F(in x, log rho)."""

    def __init__(self, generator, dim: int = 3, width: int = 8) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(dim + 1, width), torch.nn.Linear(width, dim)
        self.double()
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.5 * normals(generator, *p.shape))

    def denoise(self, x, alpha, sigma):
        level = alpha * alpha + sigma * sigma
        noise = x.new_full((len(x), 1), sigma / level**0.5)
        hidden = self.first(torch.cat([x / level**0.5, noise], 1)).tanh()
        return alpha / level * x + sigma / level**0.5 * self.last(hidden)


class Held(Denoiser):
    """A denoiser that holds a network."""

    std = 1.0

    def __init__(self, net: Net) -> None:
        self.net, self.event_shape, self.dtype = net, torch.Size((3,)), torch.float64
        self.device, self.mean = torch.device("cpu"), torch.zeros(3, dtype=torch.float64)

    def posterior_mean(self, x, alpha, sigma):
        return self.net.denoise(x, alpha, sigma)


def stored(net, inversion, process, grid, x):
    """The same run with all activations kept."""
    program = inversion.program(process, grid)
    return walk(program, net, x, None, gradients=True)[0]


def gradients(final, target, x, net):
    loss = (final - target).square().sum()
    return torch.autograd.grad(loss, [x, *net.parameters()])


@pytest.mark.parametrize("final", ["stop", "denoise"])
@pytest.mark.parametrize("process", [VP, COSINE, EDM], ids=["VP", "Cosine", "EDM"])
@pytest.mark.parametrize(
    ("inversion", "steps"),
    [(BDIA(), 60), (BDIA(), 1), (BDIA(), 3), (BELM(), 30), (EDICT(), 15), (EDICT(p=1), 3)],
    ids=repr,
)
def test_gradients_are_those_of_stored_activations(generator, inversion, steps, process, final):
    net, target = Net(generator), normals(generator, 5, 3)
    grid = wb.Grid.log_snr(process, steps, final)
    x = (normals(generator, 5, 3) * process.prior_std(grid.t[0])).requires_grad_()
    made, plain = reversible(net, inversion, grid, x), stored(net, inversion, process, grid, x)
    torch.testing.assert_close(made, plain, rtol=1e-12, atol=1e-12)
    mine, theirs = gradients(made, target, x, net), gradients(plain, target, x, net)
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).norm() <= 1e-8 * b.norm()


def test_gradients_over_hundreds_of_steps(generator):
    net, target = Net(generator), normals(generator, 5, 3)
    grid = wb.Grid.uniform(VP, 200)
    x = normals(generator, 5, 3).requires_grad_()
    mine = gradients(reversible(net, BDIA(), grid, x), target, x, net)
    theirs = gradients(stored(net, BDIA(), VP, grid, x), target, x, net)
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).norm() <= 1e-10 * b.norm()


def test_single_precision(generator):
    net, target = Net(generator).float(), normals(generator, 5, 3).float()
    grid = wb.Grid.uniform(VP, 40)
    x = normals(generator, 5, 3).float().requires_grad_()
    mine = gradients(reversible(net, BDIA(), grid, x), target, x, net)
    theirs = gradients(stored(net, BDIA(), VP, grid, x), target, x, net)
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 1e-4 * b.norm()


class Kept:
    """Bytes that graphs hold on to: now, and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor):
        kept, box = self, [tensor.nbytes]
        kept.now += tensor.nbytes
        kept.most = max(kept.most, kept.now)

        class Ticket:
            held = tensor.detach()

            def __del__(self):
                kept.now -= box[0]

        return Ticket()


def most_kept(run) -> int:
    kept = Kept()
    with saved_tensors_hooks(kept.pack, lambda ticket: ticket.held):
        run()
    return kept.most


@pytest.mark.parametrize("inversion", [BDIA(), EDICT()], ids=repr)
def test_memory_does_not_grow_with_the_steps(generator, inversion):
    net, x = Net(generator), normals(generator, 5, 3)

    def used(make, steps):
        grid = wb.Grid.uniform(VP, steps)
        return most_kept(lambda: make(grid, x.clone().requires_grad_()).sum().backward())

    def rebuilt(grid, x):
        return reversible(net, inversion, grid, x)

    def plain(grid, x):
        return stored(net, inversion, VP, grid, x)

    assert used(rebuilt, 200) == used(rebuilt, 10) > 0
    assert used(plain, 200) > 15 * used(plain, 10)  # what it is measured against does grow
    assert used(rebuilt, 200) < used(plain, 10)


def test_a_diffusion_with_a_network_and_its_frozen_parameters(generator):
    net, target = Net(generator), normals(generator, 4, 3)
    net.first.bias.requires_grad_(False)
    process, condition = wb.OUVE(), normals(generator, 3)
    diffusion = wb.Diffusion(process, Held(net), condition)
    grid, x = wb.Grid.log_snr(process, 12), normals(generator, 4, 3)
    made = reversible(diffusion, BDIA(), grid, x)  # x asks for nothing
    (made - target).square().sum().backward()
    mine = [p.grad.clone() for p in net.parameters() if p.requires_grad]
    assert net.first.bias.grad is None
    net.zero_grad()
    u = stored(diffusion.core, BDIA(), process, grid, diffusion.to_core(x, grid.t[0]))
    (diffusion.from_core(u, grid.t[-1]) - target).square().sum().backward()
    theirs = [p.grad for p in net.parameters() if p.requires_grad]
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(made.detach(), BDIA().decode(diffusion, grid, x).detach())


def test_sample_gives_the_same_gradients_and_only_where_they_are_asked_for(generator):
    net, target, grid = Net(generator), normals(generator, 4, 3), wb.Grid.log_snr(VP, 12)
    diffusion, x = wb.Diffusion(VP, Held(net)), normals(generator, 4, 3)

    def run(x, **options):
        return wb.sample(diffusion, BDIA(), grid, range(4), x=x, **options).final

    rebuilt = reversible(diffusion, BDIA(), grid, x.requires_grad_())
    theirs = gradients(rebuilt, target, x, net)
    for final in (run(x), run(x, gradients=True)):
        for a, b in zip(gradients(final, target, x, net), theirs, strict=True):
            assert (a - b).norm() <= 1e-8 * b.norm()
    still = x.detach()
    loss = (run(still, gradients=True) - target).square().sum()
    mine = torch.autograd.grad(loss, list(net.parameters()))
    for a, b in zip(mine, theirs[1:], strict=True):
        assert (a - b).norm() <= 1e-8 * b.norm()
    # A network's parameters always ask for gradients; a run alone keeps no graph for them.
    assert not run(still).requires_grad and not run(x, gradients=False).requires_grad
    assert not wb.sample(diffusion, BDIA(), grid, range(4)).final.requires_grad
    with torch.no_grad():
        assert not run(x).requires_grad
        with pytest.raises(ValueError, match="call sample outside it"):
            run(x, gradients=True)
    with pytest.raises(ValueError, match="a run that is recorded cannot be differentiated"):
        run(x, record=wb.Record(["x"]))
    ring = wb.Diffusion(VP, wb.datasets.ring().law)
    with pytest.raises(ValueError, match="nothing that asks for a gradient"):
        wb.sample(ring, wb.Heun(), grid, range(4), gradients=True)
    final = wb.sample(diffusion, BDIA(), grid, range(4), x=x)
    assert final.dataset["final"].shape == (4, 3)  # as numbers


def test_gradients_reach_data_by_the_exact_flow(generator):
    """On Gaussian data the Jacobian of a fine run is that of the flow, mode by mode."""
    law = wb.Gaussian(torch.zeros(3, dtype=torch.float64), torch.tensor([2.0, 0.5, 0.1]).double())
    diffusion, grid = wb.Diffusion(VP, law), wb.Grid.log_snr(VP, 400)
    x = normals(generator, 2, 3).requires_grad_()
    (grad,) = torch.autograd.grad(reversible(diffusion, BDIA(), grid, x).sum(), x)
    a, b = VP(grid.t[0]), VP(grid.t[-1])
    scale = [(c.alpha**2 * law.variances + c.sigma**2).sqrt() for c in (a, b)]
    torch.testing.assert_close(grad, (scale[1] / scale[0]).expand(2, 3), rtol=1e-3, atol=0)


def test_what_it_refuses(generator):
    net, grid, x = Net(generator), wb.Grid.uniform(VP, 5), normals(generator, 2, 3)
    with pytest.raises(ValueError, match="does not undo its steps exactly"):
        reversible(net, DDIMInversion(), grid, x)
    with pytest.raises(TypeError, match=r"call it first: BDIA\(\)"):
        reversible(net, BDIA, grid, x)
    with pytest.raises(TypeError, match="have a denoise"):
        reversible(torch.nn.Linear(3, 3), BDIA(), grid, x)
    with pytest.raises(ValueError, match="another process"):
        reversible(wb.Diffusion(COSINE, Held(net)), BDIA(), grid, x)
    made = reversible(net, BDIA(), grid, x, parameters=net.first.parameters())
    with pytest.raises(ValueError, match="not among the parameters"):
        made.sum().backward()


def test_parameters_changed_before_the_backward_pass_are_noticed(generator):
    net, grid, x = Net(generator), wb.Grid.uniform(VP, 5), normals(generator, 2, 3)
    made = reversible(net, BDIA(), grid, x)
    with torch.no_grad():
        net.first.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        made.sum().backward()
