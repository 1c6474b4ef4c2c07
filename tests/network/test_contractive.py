"""The contractive penalty against dense Jacobians, and what it is for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import raphson as rp

DTYPE = torch.float64


def encoders():
    torch.manual_seed(0)
    image = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Softplus(), nn.Flatten(), nn.Linear(12, 5), nn.Tanh())
    return {
        "linear": (nn.Linear(6, 4), (7, 6)),
        "sigmoid": (nn.Sequential(nn.Linear(6, 4), nn.Sigmoid()), (7, 6)),
        "flattened": (nn.Sequential(nn.Flatten(), nn.Linear(6, 4, bias=False), nn.Softplus(), nn.Tanh()), (7, 2, 3)),
        "deep": (nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Sigmoid()), (7, 6)),
        "images": (image, (5, 1, 4, 4)),
    }


def case(name):
    encoder, shape = encoders()[name]
    return encoder.to(DTYPE), torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=DTYPE)


def jacobian(encoder, x):
    return rp.input_jacobian(encoder, x).reshape(len(x), -1, x[0].numel())


@pytest.mark.parametrize("name", encoders())
def test_the_exact_penalty_is_that_of_the_dense_jacobian(name):
    encoder, x = case(name)
    expected = jacobian(encoder, x).square().sum((1, 2)).mean()
    torch.testing.assert_close(rp.contractive_penalty(encoder, x).detach(), expected)


@pytest.mark.parametrize("name", ["sigmoid", "deep", "images"])
def test_it_is_differentiable(name):
    encoder, x = case(name)
    parameters = list(encoder.parameters())
    found = torch.autograd.grad(rp.contractive_penalty(encoder, x), parameters, materialize_grads=True)

    def penalty(*values):
        params = dict(zip(dict(encoder.named_parameters()), values, strict=True))
        one = torch.func.jacrev(lambda row: torch.func.functional_call(encoder, params, row[None])[0])
        return torch.func.vmap(one)(x).square().sum() / len(x)

    expected = torch.func.grad(penalty, argnums=tuple(range(len(parameters))))(*(p.detach() for p in parameters))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["sigmoid", "images"])
@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_the_higher_order_term(name, method):
    encoder, x = case(name)
    noise = 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=DTYPE)
    here, there = jacobian(encoder, x), jacobian(encoder, x + noise)
    expected = (here.square().sum() + 0.7 * (here - there).square().sum()) / len(x)
    options = {"higher_order": 0.7, "noise": 0.3, "corruptions": 1}
    if method == "exact":
        generator = torch.Generator().manual_seed(5)
        found = rp.contractive_penalty(encoder, x, generator=generator, **options)
        torch.testing.assert_close(found.detach(), expected)
    else:
        generator = torch.Generator().manual_seed(6)
        options |= {"samples": 400, "corruptions": 40}
        found = rp.contractive_penalty(encoder, x, "hutchinson", generator=generator, **options)
        assert float(found) == pytest.approx(float(expected), rel=0.1)


def test_the_estimate_has_the_mean_and_the_variance_that_it_states():
    encoder, x = case("deep")
    j = jacobian(encoder, x)
    a = j @ j.mT
    variance = 2 * (a.square().sum((1, 2)) - a.diagonal(dim1=1, dim2=2).square().sum(1))
    generator = torch.Generator().manual_seed(0)
    found = rp.contractive_penalty_estimate(encoder, x, samples=20_000, generator=generator)
    error = float((variance.sum() / 20_000).sqrt() / len(x))
    assert float(found.standard_error) == pytest.approx(error, rel=0.05)
    assert abs(float(found.value.detach()) - float(j.square().sum() / len(x))) < 4 * error
    runs = torch.stack([rp.contractive_penalty(encoder, x, "hutchinson", generator=generator) for _ in range(2000)])
    assert float(runs.detach().var()) == pytest.approx(float(variance.sum()) / len(x) ** 2, rel=0.15)


def test_dropout_is_part_of_the_encoder_that_was_sampled():
    encoder = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5)).to(DTYPE)
    x = torch.randn(4, 6, dtype=DTYPE)
    whole = float(encoder[0].weight.detach().square().sum())
    assert float(rp.contractive_penalty(encoder.eval(), x)) == pytest.approx(whole)
    assert float(rp.contractive_penalty(encoder.train(), x)) != pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda e, x: rp.contractive_penalty(e, x, "hutch"), "method is 'hutch'"),
        (lambda e, x: rp.contractive_penalty(e, x.long()), "floating-point"),
        (lambda e, x: rp.contractive_penalty(lambda t: e(t).T, x), "first axis"),
        (lambda e, x: rp.contractive_penalty_estimate(e, x, samples=1), "two samples"),
        (lambda e, x: rp.contractive_penalty(e, x.numpy()), "x is a ndarray"),
        (lambda e, x: rp.contractive_penalty(e, x[:, :2]), r"Module .* says: mat1 and mat2"),
        (lambda e, x: rp.contractive_penalty(e[:2], x[:, :2]), r"inputs of shape .*, 2\)"),
        (lambda e, x: rp.contractive_penalty(e, x.float()), "have type torch.float32"),
        (lambda e, x: rp.contractive_penalty(lambda t: (e(t), t), x), "made a tuple"),
        (lambda e, x: rp.contractive_penalty(e, x, samples=1.5), "samples is 1.5"),
        (lambda e, x: rp.contractive_penalty(e, x, higher_order=-1.0), "higher_order is -1"),
    ],
)
def test_what_cannot_be_used_is_refused(call, match):
    encoder, x = case("deep")
    with pytest.raises(rp.InputError, match=match):
        call(encoder, x)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_contractive_codes_of_digits_move_less_and_classify_better():
    """Rifai et al. 2011: a smaller Jacobian and a lower test error of a linear readout, over 5 seeds, tied weights."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32)
    train, test = slice(0, 1200), slice(1200, None)
    results = {0.0: [], 0.3: []}
    for seed in range(5):
        for weight, found in results.items():
            torch.manual_seed(seed)
            encoder, shift = nn.Sequential(nn.Linear(64, 256), nn.Sigmoid()), nn.Parameter(torch.zeros(64))
            opt = torch.optim.Adam([*encoder.parameters(), shift], 3e-3)
            for _ in range(100):
                for rows in torch.randperm(1200).split(100):
                    out = encoder(x[rows]) @ encoder[0].weight + shift
                    loss = nn.functional.binary_cross_entropy_with_logits(out, x[rows]) * 64
                    loss = loss + weight * rp.contractive_penalty(encoder, x[rows])
                    opt.zero_grad()
                    loss.backward()
                    opt.step()
            with torch.no_grad():
                codes = encoder(x).numpy()
            readout = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(codes[train], labels[train])
            norm = float(rp.contractive_penalty(encoder, x[test]).detach()) ** 0.5
            found.append((norm, 1 - readout.score(codes[test], labels[test])))
    plain, contractive = (torch.tensor(results[weight]).mean(0) for weight in (0.0, 0.3))
    assert contractive[0] < 0.5 * plain[0]
    assert contractive[1] < plain[1], (plain, contractive)
