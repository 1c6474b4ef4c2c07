"""Every script in examples/ runs as a user would run it, without a network, and prints what it is there to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"

# what each is there to show: its data and its seed are its own
SHOWS = {
    "separation.py": [r"there is no finite optimum", r"completely separated", r"dose +1\.03"],
    "clustered_counts.py": [r"observed information +robust +clustered", r"treated +0\.0492 +0\.0597 +0\.1158"],
    "ordinal.py": [r"-1613\.855", r"chi2\(15\) = 67\.4"],
    "mean_and_spread.py": [r"-2952\.3546", r"chi2\(1\) = 6\.48", r"indefinite for every target"],
    # the same slopes and standard errors twice, where marginaleffects is installed
    "marginal_effects.py": [r"needs marginaleffects|(?s:age\D+-0\.00927\D+0\.00823.*age +-0\.009275 +0\.008226)"],
    "kfac_network.py": [r"Kronecker", r"K-FAC: +loss 0\.3"],
}


def test_every_script_is_tested() -> None:
    assert {file.name for file in EXAMPLES.glob("*.py")} == set(SHOWS)


@pytest.mark.parametrize("name", SHOWS)
def test_the_script_runs_and_shows_what_it_says(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    for pattern in SHOWS[name]:
        assert re.search(pattern, done.stdout), f"{name} does not print {pattern}:\n{done.stdout}"
