"""Offsets that are no logarithms: an exposure as it is overflows."""

from __future__ import annotations

import torch

from raphson._errors import InputError
from raphson.estimators.fit._start import guess
from raphson.estimators.input._rows import Rows
from raphson.likelihoods import Likelihood

_LARGEST_LOG = 100.0
"""Between two logarithms of exposures; their ratio is 1e43 here, beyond any two exposures of one table."""

_LARGEST_COMMON = 1e8
"""Of offsets of all rows, in units of the targets: eight digits are left to the rest."""


def refuse_overflow(rows: Rows, likelihood: Likelihood, outputs: tuple[str, ...]) -> None:
    """Raise ``InputError``, naming the row, where an offset makes the log-likelihood overflow from the start."""
    if rows.offset is None:
        return
    _refuse_cancelled(rows, likelihood, outputs)
    f = guess(rows, likelihood, rows.offset.shape[1]) + rows.offset
    spread = rows.offset.amax(0) - rows.offset.amin(0)
    logs = torch.tensor([name.startswith("log_") for name in outputs])
    wide = logs & (spread > _LARGEST_LOG)
    if bool(torch.isfinite(likelihood.nll(f, rows.y)).all()) and not bool(wide.any()):
        return
    output = int(torch.where(wide, spread, -1.0).argmax()) if bool(wide.any()) else int(spread.argmax())
    place = int(rows.offset[:, output].abs().argmax())
    row = int(rows.kept.nonzero()[0][place])
    raise InputError(
        f"The offset is {float(rows.offset[place, output]):g} in row {row}, which overflows "
        f"when it is added to '{outputs[output]}'. Is it an exposure? Give its logarithm: offset=np.log(exposure), "
        "offset(log(t)) in a formula, or --exposure on the command line.",
        row=row,
    )


def _refuse_cancelled(rows: Rows, likelihood: Likelihood, outputs: tuple[str, ...]) -> None:
    """Raise ``InputError`` for an offset so large in every row that the sum with an intercept has no digits left."""
    assert rows.offset is not None
    offset = rows.offset - rows.offset[:, :1] if likelihood.differences_only else rows.offset
    common = torch.maximum(offset.amin(0), -offset.amax(0))  # of one sign in all rows: the least in size
    unit = 1.0
    if rows.y.is_floating_point():
        unit = max(1.0, float(rows.y.abs().max()))
    bad = common > _LARGEST_COMMON * unit
    if bool(bad.any()):
        output = int(bad.int().argmax())
        raise InputError(
            f"The offset of '{outputs[output]}' is {float(common[output]):g} or more in size in every row, so large "
            "that sums with it have no digits left. Subtract what all rows have in common: it is part of the intercept."
        )
