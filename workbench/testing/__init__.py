"""The public conformance kit: hold your own process, denoiser, sampler or lens against its laws.

One line each::

    from workbench.testing import check_denoiser
    print(check_denoiser(my_denoiser))

Each check returns a :class:`Report` (law by law: the worst deviation, where, and what is allowed)
and raises :class:`ConformanceError`, with the same report, if a law is broken. Everything
registered with the workbench passes these checks.
"""

from workbench.testing.denoisers import check_denoiser
from workbench.testing.lenses import check_lens
from workbench.testing.processes import check_process
from workbench.testing.report import ConformanceError, Law, Report
from workbench.testing.samplers import check_sampler
