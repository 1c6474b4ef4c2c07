"""``raphson fit --model mlp:50``: a small network with its posterior, and what it predicts of a table."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

import raphson as rp
from raphson.cli._classes import class_table
from raphson.cli._likelihoods import CATEGORICAL, prepare_target
from raphson.cli._options import FitOptions
from raphson.likelihoods import commands, make_likelihood
from raphson.table import TrainingData

_LEVEL = 0.95


def hidden_units(model: str) -> tuple[int, ...] | None:
    """Return the hidden units of ``"mlp:50,50"``, None of ``"linear"``; anything else is an ``InputError``."""
    if model == "linear":
        return None
    found = re.fullmatch(r"mlp:(\d+(?:,\d+)*)", model)
    sizes = tuple(int(size) for size in found[1].split(",")) if found else ()
    if not sizes or min(sizes) < 1:
        raise rp.InputError(
            f"--model is 'linear', or 'mlp:' and the hidden units of each layer, as in mlp:50; not '{model}'."
        )
    return sizes


def fit_network(
    design: rp.Design, data: TrainingData, name: str, hidden: tuple[int, ...], options: FitOptions
) -> tuple[Any, list[str]]:
    """Return a fitted network and sentences on it; a target or option that does not suit one is refused."""
    given = {
        "--l2": options.l2 or None,
        "--covariance": options.covariance,
        "--groups": options.groups,
        "--offset": options.offset or None,
        "--exposure": options.exposure,
        "--event": options.event,
        "--exp": options.exp or None,
        "--memory": options.memory,
        "--resume": options.resume or None,
    }
    unfit = [option for option, value in given.items() if value is not None]
    if unfit:
        raise rp.InputError(f"{unfit[0]} is for linear models; leave it out, or say --model linear.")
    assert data.y is not None
    y, notes = data.y, list[str]()
    if name == CATEGORICAL:
        likelihood: rp.Likelihood = rp.Categorical()
    else:
        y, number, note = prepare_target(y, commands()[name][1], design.target or "", options.levels, options.trials)
        y = y.cat.codes.to_numpy() if isinstance(y, pd.Series) else y
        likelihood = make_likelihood(name, number, options.link)
        notes += [note] if note else []
    model = rp.BayesianMLP(likelihood, hidden)
    model.fit(pd.DataFrame(data.x, columns=list(data.names)), y, sample_weight=data.weights)
    return model, notes


def describe_network(model: Any, notes: list[str]) -> str:
    """Return what is known of a fitted network as text."""
    return "\n".join([str(model.summary()), *(f"- {note}" for note in dict.fromkeys(notes))])


def network_predictions(model: Any, table: pd.DataFrame) -> pd.DataFrame:
    """Return mean, standard deviation and 95 % interval of each row, or probabilities of classes."""
    mean, sd = model.predict(table, return_std=True)
    if isinstance(model.posterior_.objective.likelihood, rp.Categorical):
        return class_table(mean, np.arange(mean.shape[1]) if model.classes_ is None else model.classes_)
    low, high = model.predict_interval(table, _LEVEL)
    columns = {"predicted": mean, "sd": sd, "lower": low, "upper": high}
    if mean.ndim == 1:
        return pd.DataFrame(columns)
    return pd.DataFrame({
        f"{name}[{i}]": values[:, i] for name, values in columns.items() for i in range(mean.shape[1])
    })
