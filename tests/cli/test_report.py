"""``raphson fit --report FILE``."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd


def test_a_report_knows_the_command(cli, tmp_path):
    rng = np.random.default_rng(0)
    table = tmp_path / "x.csv"
    pd.DataFrame({"a": rng.normal(size=80), "y": rng.poisson(2.0, 80)}).to_csv(table, index=False)
    done = cli("fit", table, "--target", "y", "--likelihood", "poisson", "--report", tmp_path / "fit.json", "--quiet")
    assert done.code == 0, done.err
    made = json.loads((tmp_path / "fit.json").read_text(encoding="utf-8"))
    assert made["reproduce"]["Call"].startswith("raphson fit ") and "--likelihood poisson" in made["reproduce"]["Call"]
    assert [check["verdict"] for check in made["checks"]][:3] == ["pass"] * 3
    refused = cli("fit", table, "--target", "y", "--report", tmp_path / "fit.txt")
    assert refused.code == 2 and "must end in .html" in refused.err
