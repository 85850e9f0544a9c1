"""The guard: exact networks pass, whatever they predict; what is said wrongly is told."""

import pytest
import torch
from helpers import normals

import workbench as wb
from workbench.denoisers.guard import READINGS, MismatchError, guard


def network(law, predicts: str, process, scale: float = 1.0):
    """The exact network of a law, its data multiplied by ``scale`` in its training."""
    sign = -1.0 if "opposite" in predicts else 1.0

    def module(x, t):
        c = process(t).map(lambda v: v[:, None])
        denoised = scale * law.denoise(x, scale * c.alpha, c.sigma)
        noise = (x - c.alpha * denoised) / c.sigma
        if predicts == "denoised":
            return denoised
        if predicts == "noise":
            return noise
        if predicts == "score":
            return -noise / c.sigma
        return sign * (c.d_alpha * denoised + c.d_sigma * noise)

    return module


@pytest.mark.parametrize("process", [wb.VP(), wb.RectifiedFlow()])
def test_every_reading_is_recognised(process):
    data = wb.DATASETS["ring"](size=150)
    kinds = ["noise", "denoised", "score", "velocity"]
    for index, truth in enumerate(READINGS):
        module = network(data.law, truth, process)
        for said in {truth, kinds[(index + 1) % 4]} & set(kinds):
            net = wb.Neural(module, said, process, (2,), dtype=torch.float64)
            found = guard(net, data.points, samples=150)
            if said == truth:
                found.check()
                assert (abs(found.factors - 1) < 0.6).all()
            else:
                match = rf"said to predict {said}; read as {truth} its loss is .* times less"
                with pytest.raises(MismatchError, match=match):
                    found.check()


def test_a_wrong_scale_or_time_is_told():
    data = wb.DATASETS["ring"](size=150)
    module = network(data.law, "denoised", wb.EDM(), scale=4.0)
    net = wb.Neural(module, "denoised", wb.EDM(), (2,), dtype=torch.float64)
    guard(net, 4 * data.points).check()
    late = wb.Neural(
        lambda x, t: data.law.denoise(x, torch.ones_like(t)[:, None], 4 * t[:, None]),
        "denoised", wb.EDM(), (2,), dtype=torch.float64,
    )  # fmt: skip
    found = guard(late, data.points, samples=150)
    assert found.factors == pytest.approx([0.25] * len(found.rho), rel=0.6)
    with pytest.raises(MismatchError, match=r"told 0\.\d* times the true noise level"):
        found.check()


def test_what_cannot_be_tried(generator):
    net = wb.Neural(lambda x, t: x, "noise", wb.VP(), (2,), dtype=torch.float64)
    for points in (normals(generator, 1, 2), normals(generator, 9, 3)):
        with pytest.raises(ValueError, match=r"tried on two data or more of that shape"):
            guard(net, points)
