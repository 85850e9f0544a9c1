"""Studies of version 1 of the format give the arrays that they gave then."""

from pathlib import Path

import numpy as np
import pytest

import workbench as wb

with np.load(Path(__file__).parent / "reference" / "version_1.npz") as archive:
    REFERENCE = {query: archive[query] for query in archive.files}


@pytest.mark.parametrize("query", REFERENCE)
def test_arrays_come_out_as_before(query):
    study = wb.Study.from_query(query)
    assert (study.sampler.name, study.dtype) == ("Heun", "float64")
    run = wb.run(study)
    scale = np.abs(run["x"].values).max()
    for field, then in zip(study.record.fields, REFERENCE[query], strict=True):
        error = np.abs(run[field].values - then).max()
        assert error <= 1e-12 * max(np.abs(then).max(), scale), field
