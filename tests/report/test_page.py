"""A page in a real browser: nothing on its console, nothing asked of a network, figures visible at both widths."""

from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

import raphson as rp

image = pytest.importorskip("matplotlib.image", reason="a page has figures: pip install 'raphson[plot]'")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (Debian's package: chromium)")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--no-first-run",
    "--enable-logging=stderr",
)
BLUE = np.array([0x2B, 0x6C, 0xB0]) / 255


def open_page(page, width, folder, *options):
    """Screenshot, what the browser said, and the addresses that it asked for."""
    shot, log = folder / f"{width}.png", folder / f"{width}.json"
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}"]
    command += [f"--window-size={width},6000", f"--screenshot={shot}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shot.exists(), done.stderr
    events = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    # what the browser asks for on its own account has no origin
    asked = {p["url"] for p in events if "url" in p and p.get("initiator", "not an origin") != "not an origin"}
    return image.imread(shot)[..., :3], done.stderr, asked


def test_requests_and_messages_would_be_seen(tmp_path):
    page = tmp_path / "asks.html"
    page.write_text('<img src="http://127.0.0.1:9/a.png"><script>console.log("hello")</script>', encoding="utf-8")
    _, said, asked = open_page(page, 390, tmp_path)
    assert "hello" in said and asked == {"http://127.0.0.1:9/a.png"}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_in_a_browser(tmp_path, dark):
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.normal(size=(200, 2)), columns=["a", "b"])
    page = tmp_path / "fit.html"
    rp.VectorGLM(rp.Poisson()).fit(x, rng.poisson(np.exp(0.4 * x["a"]))).report(page)
    options = ["--blink-settings=preferredColorScheme=0"] if dark else []
    for width in (1280, 390):
        seen, said, asked = open_page(page, width, tmp_path, *options)
        assert "CONSOLE" not in said, said
        assert asked == set()
        assert seen.shape[1] == width
        # figures have points and lines in this blue, far down the page and within its width
        blue = (np.abs(seen - BLUE) < 0.02).all(-1)
        down, across = np.nonzero(blue)
        assert len(down) > 300 and np.ptp(down) > 800 and across.max() < width - 5
        corner = seen[5, 5].mean()
        assert corner < 0.3 if dark else corner > 0.9
