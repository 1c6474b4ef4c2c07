

def test_the_exponential_family_form_gives_the_same_derivatives():
    g = torch.Generator().manual_seed(0)
    f = 5 * torch.randn(20, 3, generator=g, dtype=torch.float64)
    y = torch.rand(20, 3, generator=g, dtype=torch.float64)
    lik = Bernoulli()
    t, partition, at = lik.statistic(y, 3), lik.log_partition(f), lik.derivatives(f, y)
    torch.testing.assert_close(partition.nll - (t * f).sum(-1), at.nll)
    torch.testing.assert_close(partition.gradient - t, at.gradient)
    torch.testing.assert_close(partition.hessian.to_dense(), at.hessian.to_dense())
    assert lik.log_partition(f, hessian=False).hessian is None
    assert Bernoulli(pos_weight=torch.tensor(2.0)).statistic(y, 3) is None
