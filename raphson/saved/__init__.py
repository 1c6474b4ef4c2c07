"""Saved models: a directory with ``model.json`` and ``tensors.safetensors``, and no pickle.

Loading runs no code from the files: classes come from a fixed list, tensors from safetensors, everything else
from JSON, checked field by field. Both files are checked by their SHA-256 sums, and a truncated or changed one is
refused.
"""

from __future__ import annotations

from raphson.saved._saved import Saved as Saved
from raphson.saved._saved import check_target as check_target
from raphson.saved._saved import load as load
from raphson.saved._saved import save as save
