"""Every likelihood that the package exports, found by its export: what holds for all, with nothing said here for one.

A family says in ``examples`` what to construct and in ``definition`` at which outputs and target; its value is then
compared with its own formula by SymPy (``tests/explain``) and its derivatives here with those of its value.
"""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.func import grad, hessian

from raphson.likelihoods import Likelihood, catalogue, commands, from_description, make_likelihood, to_description

from .conformance import DTYPE, _by_row

MEMBERS = [member for kind in catalogue().values() for member in kind.examples()]
every_member = pytest.mark.parametrize("likelihood", MEMBERS, ids=repr)


def example(likelihood: Likelihood, n: int = 4) -> tuple[Likelihood, torch.Tensor, torch.Tensor]:
    """The member that the definition is for, and rows at and around its example."""
    definition = likelihood.definition()
    outputs, target = definition.example
    f = torch.tensor(outputs, dtype=DTYPE) + 0.1 * torch.arange(n, dtype=DTYPE).unsqueeze(-1) / n
    y = torch.tensor(target, dtype=torch.long if isinstance(target, int) else DTYPE)
    return definition.likelihood, f, y.expand(n, *y.shape)


def close(actual: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-9) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * scale)


def check_member(likelihood: Likelihood) -> None:
    """Derivatives against automatic ones of the value, operators, sampling, start values, names and shapes."""
    lik, f, y = example(likelihood)
    c = f.shape[-1]
    lik.check(y, c)
    lik.check_outputs(f)
    assert len(lik.output_names(c)) == c and c % len(lik.parameters) == 0 and len(lik.domains) == len(lik.parameters)

    value, gradient = lik.nll(f, y), _by_row(grad(lik.nll), f, y)
    # torch's trigamma, which second derivatives of lgamma are, is right to 5e-10 relative
    curvature = _by_row(hessian(lik.nll), f, y)
    assert value.shape == f.shape[:-1]
    close(lik.gradient(f, y), gradient)
    close(lik.hessian(f, y).to_dense(), curvature, 5e-9)
    information = lik.fisher(f, y).to_dense()
    assert float(torch.linalg.eigvalsh(information).min()) >= -1e-12 * float(information.abs().max())
    root = lik.fisher_factor(f, y).to_dense()
    close(root @ root.mT, information)
    for kind, expected in (("observed", lik.hessian(f, y).to_dense()), ("expected", information), (None, None)):
        at = lik.derivatives(f, y, kind)
        close(at.nll, value)
        close(at.gradient, gradient)
        assert (at.hessian is None) == (expected is None)
        if at.hessian is not None and expected is not None:
            close(at.hessian.to_dense(), expected)
    if lik.concave:
        assert float(torch.linalg.eigvalsh(curvature).min()) >= -1e-9
    statistic = lik.statistic(y, c)
    if statistic is not None:
        partition = lik.log_partition(f)
        close(partition.gradient - statistic, gradient)

    drawn = lik.sample(f, torch.Generator().manual_seed(0))
    lik.check(drawn, c)
    assert torch.equal(drawn, lik.sample(f, torch.Generator().manual_seed(0)))
    assert lik.nll(f, drawn).shape == f.shape[:-1]
    assert lik.mean(f).shape == lik.variance(f).shape
    single = lik.derivatives(f.float(), y)
    assert single.nll.dtype == single.gradient.dtype == torch.float32
    start = lik.start(y, c)
    assert start.shape == (c,) and start.dtype == torch.float64
    lik.check_outputs(start)


@every_member
def test_derivatives_and_shapes(likelihood):
    check_member(likelihood)


@every_member
def test_descriptions_and_pickles_make_an_equal_member(likelihood):
    lik, f, y = example(likelihood)
    for again in (from_description(to_description(lik)), pickle.loads(pickle.dumps(lik))):
        assert type(again) is type(lik)
        assert torch.equal(again.nll(f, y), lik.nll(f, y))


@every_member
def test_default_columns_reach_independent_directions(likelihood):
    lik, f, _ = example(likelihood)
    c = f.shape[-1]
    intercepts, slopes = lik.default_columns(c)
    for matrix in (intercepts, slopes):
        assert matrix.shape[0] == c and matrix.dtype == torch.float64
        assert int(torch.linalg.matrix_rank(matrix)) == matrix.shape[1] > 0
    # a column acts on no output that has no intercept
    both = torch.cat([intercepts, slopes], 1)
    assert int(torch.linalg.matrix_rank(both)) == intercepts.shape[1]


def test_each_family_has_members_and_a_formula_or_is_composed():
    families = {name for name, kind in catalogue().items() if kind.examples()}
    assert families == {name for name, kind in catalogue().items() if ".families." in kind.__module__}
    assert all(kind.definition is not Likelihood.definition for kind in catalogue().values() if kind.examples())


def test_default_columns_by_family():
    from raphson import likelihoods as lk

    eye = torch.eye(4, dtype=DTYPE)
    for lik, c, intercepts, slopes in (
        (lk.Poisson(), 4, eye, eye),
        (lk.Gamma(), 4, eye, eye[:, ::2]),
        (lk.Gamma(0.5), 4, eye, eye),
        (lk.Categorical(), 4, eye[:, 1:], eye[:, 1:]),
        (lk.Multinomial(), 4, eye[:, 1:], eye[:, 1:]),
        (lk.Ordinal(5), 4, eye, -torch.ones(4, 1, dtype=DTYPE)),
        (lk.MultivariateGaussian(), 5, torch.eye(5, dtype=DTYPE), torch.eye(5, dtype=DTYPE)[:, :2]),
        (lk.Linked(lk.Linked(lk.Categorical(), "exp"), "log"), 4, eye[:, 1:], eye[:, 1:]),
        (lk.ScaledLikelihood(lk.Ordinal(5), 2.0), 4, eye, -torch.ones(4, 1, dtype=DTYPE)),
        (lk.as_likelihood(torch.distributions.Gamma), 4, eye, eye[:, ::2]),
    ):
        found = lik.default_columns(c)
        assert torch.equal(found[0], intercepts) and torch.equal(found[1], slopes), lik


def test_commands_make_their_likelihoods():
    for name, (kind, command) in commands().items():
        assert command.name == name == name.lower() and "_" not in name
        assert type(make_likelihood(name, 4)) is kind
