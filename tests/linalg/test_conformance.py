"""Every member of the operator contract, at drawn shapes, batches and definiteness."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings

from .conformance import BUILDERS, Draw, check_contract, draws, softmax, sum_dense, well_posed


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
@settings(max_examples=20, deadline=None)
@given(d=draws)
def test_contract(build, d):
    op, dense = build(d)
    assume(well_posed(dense))
    check_contract(op, dense, d)


def test_what_cancels_is_singular_to_the_precision_of_its_terms():
    d = Draw(seed=193, batch=(), n=2, m=1, kind="singular")
    check_contract(*sum_dense(d), d)
    d = Draw(seed=370785922, batch=(), n=1, m=1, kind="definite")  # p = 0.985 and 0.015: -p^2 leaves 1e-15 of the rest
    check_contract(*softmax(d), d)


@pytest.mark.parametrize("kind", ["definite", "indefinite", "singular"])
@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_contract_at_fixed_shape(build, kind):
    d = Draw(seed=1, batch=(3,), n=4, m=2, kind=kind)
    check_contract(*build(d), d)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["definite", "indefinite", "singular"])
@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_contract_on_cuda(build, kind):
    d = Draw(seed=1, batch=(3,), n=4, m=2, kind=kind, device="cuda:0")
    check_contract(*build(d), d)
