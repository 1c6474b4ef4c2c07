"""Class labels as the categorical likelihood sees them: numbers from 0, their weights, the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from raphson._errors import InputError
from raphson.estimators.input._labels import Labels, number_labels
from raphson.estimators.input._rows import Rows
from raphson.estimators.input._validate import check_size_of_weights


def encode_classes(y: Any, n_rows: int, weights: Tensor | None) -> tuple[Labels, Tensor]:
    """Return the labels of the classes, sorted ``(K,)``, and the class of each row ``(N,)``, int64.

    Raises:
        InputError: If labels cannot be used, there is a single class, or one that occurs only in rows of zero weight.
    """
    classes, found = number_labels(y, n_rows)
    codes = torch.from_numpy(found)
    if weights is not None:
        absent = torch.bincount(codes, weights=weights, minlength=len(classes)) == 0
        if bool(absent.any()):
            first = int(absent.nonzero()[0])
            row = int((codes == first).nonzero()[0])
            raise InputError(
                f"The class {plain(classes[first])} occurs only in rows of zero sample_weight (first in row {row}), so "
                "nothing can be learned of it; give those rows weight, or drop them before fitting.",
                row=row,
            )
    if len(classes) < 2:
        raise InputError(
            f"The target has only one class, {plain(classes[0])}; a classifier needs at least two. Were the "
            "other rows filtered out?"
        )
    return classes, codes


def known_codes(y: Any, classes: Labels, n_rows: int) -> Tensor:
    """Return the position among the classes of the fit of each row's label ``(N,)``, -1 for one that is none of them.

    Raises:
        InputError: If labels cannot be used, or none of them is a class.
    """
    labels, codes = number_labels(y, n_rows)
    of_class = {label: i for i, label in enumerate(classes.tolist())}
    places = np.array([of_class.get(label, -1) for label in labels.tolist()])
    if (places < 0).all():
        raise InputError(
            f"No label of y is a class of the fit: they begin with {_listed(labels)}, the classes are "
            f"{_listed(classes)}. Texts and numbers are other labels."
        )
    return torch.from_numpy(places[codes])


def _listed(labels: Labels) -> str:
    return ", ".join(plain(label) for label in labels[:12]) + (", ..." if len(labels) > 12 else "")


def class_weights(rows: Rows, classes: Labels, wanted: Any) -> Tensor:
    """Return the weights of rows times those of their classes, ``(n,)``.

    Raises:
        InputError: If a weight is negative, or a label of the dictionary is not a class.
    """
    codes = rows.y.numpy()
    try:
        if isinstance(wanted, str):
            found = compute_class_weight(wanted, classes=np.arange(len(classes)), y=codes)
        else:
            found = compute_class_weight(wanted, classes=classes, y=classes[codes])
    except ValueError as error:
        raise InputError(f"class_weight cannot be used: {error}") from None
    per_class = torch.from_numpy(np.asarray(found, dtype=np.float64))
    if not bool((torch.isfinite(per_class) & (per_class > 0)).all()):
        raise InputError(f"class_weight must be positive and finite, got {wanted!r}.")
    extra = per_class[rows.y]
    found = extra if rows.weights is None else rows.weights * extra
    check_size_of_weights(found, "product of sample_weight and class_weight")
    return found


def find_reference(reference: Any, classes: Labels) -> int | None:
    """Return the position of the reference class, None for coefficients that sum to zero.

    Raises:
        InputError: If there is no such class.
    """
    if reference is None:
        return None
    if isinstance(reference, str) and reference in ("first", "last"):
        return 0 if reference == "first" else len(classes) - 1
    where = np.flatnonzero(classes == reference)
    if len(where):
        return int(where[0])
    raise InputError(
        f"The reference {reference!r} is not a class of the target; choose 'first', 'last', None or one of "
        f"{_listed(classes)}."
    )


def reference_position(reference: Any, classes: Labels, y: Any) -> int | None:
    """Return what ``find_reference`` does; the first and last class of a categorical target are in its own order."""
    dtype = getattr(y, "dtype", None)
    categories = getattr(dtype, "categories", None)
    if isinstance(reference, str) and reference in ("first", "last") and categories is not None:
        present = [label for label in categories if bool((classes == label).any())]
        reference = present[0 if reference == "first" else -1]
        return int(np.flatnonzero(classes == reference)[0])
    return find_reference(reference, classes)


def class_totals(rows: Rows, n_classes: int) -> NDArray[Any]:
    """Return the total weight of the rows of each class, ``(K,)``."""
    weights = None if rows.weights is None else rows.weights.numpy()
    return np.bincount(rows.y.numpy(), weights=weights, minlength=n_classes)


def shares_loglik(totals: NDArray[Any]) -> float:
    """Return the log-likelihood of the model in which every row has the classes' shares as probabilities."""
    present = totals[totals > 0]
    return float(present @ np.log(present / present.sum()))


def plain(label: Any) -> str:
    """Return a label as a person writes it, not as NumPy wraps it."""
    return repr(label.item() if hasattr(label, "item") else label)


def class_labels(classes: Labels) -> dict[str, Any]:
    """Return labels of classes, ready for JSON."""
    return {"dtype": str(classes.dtype), "values": classes.tolist()}


def restore_classes(labels: dict[str, Any]) -> Labels:
    """Return the labels that ``class_labels`` was given."""
    dtype = object if labels["dtype"].startswith(("object", "str")) else labels["dtype"]
    found: Labels = np.array(labels["values"], dtype=dtype)
    return found
