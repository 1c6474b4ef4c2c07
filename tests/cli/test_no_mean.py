"""Predictions by the command where the target has no mean."""

from __future__ import annotations

import numpy as np
import pandas as pd


def test_no_infinite_number_is_written(cli, tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.standard_cauchy(120)
    x = rng.uniform(-2, 2, 120)
    data, out = tmp_path / "data.csv", tmp_path / "out.csv"
    pd.DataFrame({"x": x, "y": np.sin(x) + 0.1 * np.sign(noise) * noise**2}).to_csv(data, index=False)
    assert cli("fit", data, "--target", "y", "--likelihood", "student-t", "--save", tmp_path / "m").code == 0
    done = cli("predict", tmp_path / "m", data, "--out", out)
    assert done.code == 0 and "no finite mean in any row" in done.out
    assert np.isfinite(pd.read_csv(out)["predicted"]).all()
