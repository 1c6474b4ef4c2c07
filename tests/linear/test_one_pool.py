"""Fits leave NumPy's and SciPy's threads asleep: they spin, as PyTorch's do, and fits took up to six times as long."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FITS = """
import itertools, os, time
import numpy, scipy.linalg
theirs = [task for task in os.listdir("/proc/self/task") if int(task) != os.getpid()]
import scipy.sparse, torch
import raphson

def wakes():
    status = [open(f"/proc/self/task/{task}/status").read() for task in theirs]
    return sum(int(line.split()[1]) for text in status for line in text.splitlines() if "ctxt" in line)

random = numpy.random.default_rng(0)
print(len(theirs))
sizes = [(60, 40), (60, 300), (60, 7000), (500, 90), (500, 2000), (3000, 40)]
for (n, d), classes, l2, sparse in itertools.product(sizes, (2, 3, 50), (1e-6, 1e-2), (False, True)):
    x = random.normal(size=(n, d)) * (random.random((n, d)) < 0.1 if sparse else 1.0)
    y = (torch.from_numpy(x) @ torch.from_numpy(random.normal(size=(d, classes)))).argmax(1).numpy()
    y[:classes] = range(classes)
    if not sparse:
        x -= x.mean(0)
    before = wakes()
    raphson.MultinomialLogisticRegression(l2=l2, tol=1e-6).fit(scipy.sparse.csr_array(x) if sparse else x, y)
    if wakes() > before:
        print(n, d, classes, l2, "sparse" if sparse else "dense")
        time.sleep(0.3)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed on Linux only")
def test_fits_wake_no_threads_but_pytorchs():
    """Of OpenBLAS, which NumPy and SciPy bring, none runs during a fit."""
    threads = {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    run = [sys.executable, "-W", "ignore", "-c", FITS]
    found = subprocess.run(run, env=os.environ | threads, capture_output=True, text=True, check=True, timeout=300)
    number, *woken = found.stdout.splitlines()
    if number == "0":
        pytest.skip("NumPy and SciPy have no threads of their own here")
    assert woken == []
