"""Small data sets of published analyses, typed in as frequency tables, so that the tests need no other files.

fishing: mode by income (R package Ecdat). hsbdemo: program by socio-economic status and writing score (UCLA).
housing: satisfaction by influence, type and contact (R package MASS).
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

# fmt: off
_INCOMES = [
    416.66668, 1249.9998, 2083.3332, 2916.6666, 3749.9999, 4583.332, 5416.6667, 6250.0013, 7083.3317,
    7916.6663, 8750.001, 9583.3357, 10416.666, 11250.001, 12499.998,
]
_FISHING = {
    "beach": [5, 16, 19, 19, 25, 9, 14, 8, 7, 4, 3, 1, 1, 0, 3],
    "boat": [9, 28, 45, 70, 62, 61, 37, 33, 26, 5, 11, 3, 3, 2, 23],
    "charter": [9, 39, 65, 100, 75, 53, 41, 26, 15, 11, 10, 3, 3, 0, 2],
    "pier": [12, 23, 41, 33, 19, 18, 11, 8, 3, 1, 1, 4, 1, 0, 3],
}
_HSB = {  # (program, status): {writing score: count}
    ("academic", "high"): {
        33: 1, 38: 1, 41: 2, 42: 1, 49: 1, 52: 5, 54: 3, 57: 1, 59: 5, 60: 2, 61: 3, 62: 6, 63: 3,
        65: 5, 67: 3,
    },
    ("academic", "low"): {
        37: 1, 40: 1, 41: 1, 43: 1, 44: 1, 46: 2, 50: 1, 55: 1, 57: 2, 59: 1, 60: 1, 62: 2, 65: 4,
    },
    ("academic", "middle"): {
        40: 1, 41: 1, 46: 2, 47: 1, 49: 2, 50: 1, 52: 4, 54: 6, 55: 1, 57: 2, 59: 12, 61: 1, 62: 4,
        65: 4, 67: 2,
    },
    ("general", "high"): {
        33: 1, 36: 1, 54: 1, 57: 1, 59: 2, 65: 2, 67: 1,
    },
    ("general", "low"): {
        41: 1, 44: 3, 46: 1, 49: 3, 52: 1, 54: 3, 57: 1, 59: 1, 62: 1, 65: 1,
    },
    ("general", "middle"): {
        31: 1, 33: 1, 39: 2, 41: 1, 44: 3, 49: 1, 52: 1, 53: 1, 54: 2, 57: 2, 59: 3, 62: 2,
    },
    ("vocation", "high"): {
        39: 1, 40: 1, 44: 1, 49: 2, 52: 1, 67: 1,
    },
    ("vocation", "low"): {
        31: 1, 35: 2, 37: 1, 39: 1, 44: 2, 47: 1, 49: 1, 54: 1, 60: 1, 62: 1,
    },
    ("vocation", "middle"): {
        31: 2, 33: 1, 36: 1, 37: 1, 39: 1, 41: 4, 42: 1, 44: 2, 45: 1, 46: 4, 49: 1, 52: 3, 54: 1,
        55: 1, 57: 3, 59: 1, 62: 2, 63: 1,
    },
}
_HOUSING = [  # type, contact, influence, satisfaction, the last fastest
    21, 21, 28, 34, 22, 36, 10, 11, 36, 14, 19, 37, 17, 23, 40, 3, 5, 23, 61, 23, 17, 43, 35, 40, 26,
    18, 54, 78, 46, 43, 48, 45, 86, 15, 25, 62, 13, 9, 10, 8, 8, 12, 6, 7, 9, 20, 23, 20, 10, 22, 24, 7,
    10, 21, 18, 6, 7, 15, 13, 13, 7, 5, 11, 57, 23, 13, 31, 21, 13, 5, 6, 13,
]
# fmt: on


def fishing() -> tuple[np.ndarray, np.ndarray]:
    """Return income (1182, 1) and fishing mode."""
    y = np.concatenate([np.repeat(mode, sum(n)) for mode, n in _FISHING.items()])
    return np.concatenate([np.repeat(_INCOMES, n) for n in _FISHING.values()])[:, None], y


def hsbdemo() -> tuple[pd.DataFrame, np.ndarray]:
    """Return columns ses_middle, ses_high, write, and the program, 200 rows."""
    rows = [
        (float(ses == "middle"), float(ses == "high"), float(write), program)
        for (program, ses), scores in _HSB.items()
        for write, count in scores.items()
        for _ in range(count)
    ]
    frame = pd.DataFrame(rows, columns=["ses_middle", "ses_high", "write", "program"])
    return frame[["ses_middle", "ses_high", "write"]], frame["program"].to_numpy()


def housing() -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Return 0/1 columns, the satisfaction (coded so that it sorts) and the frequencies, 72 rows."""
    types, contacts, levels = (
        ["Tower", "Apartment", "Atrium", "Terrace"],
        ["Low", "High"],
        ["Low", "Medium", "High"],
    )
    cells = list(itertools.product(types, contacts, levels, levels))
    x = pd.DataFrame({
        "infl_medium": [float(c[2] == "Medium") for c in cells],
        "infl_high": [float(c[2] == "High") for c in cells],
        "apartment": [float(c[0] == "Apartment") for c in cells],
        "atrium": [float(c[0] == "Atrium") for c in cells],
        "terrace": [float(c[0] == "Terrace") for c in cells],
        "cont_high": [float(c[1] == "High") for c in cells],
    })
    return x, np.array([levels.index(c[3]) for c in cells]), np.array(_HOUSING, dtype=float)
