"""Each figure shows the numbers that it is of, read back from what is drawn."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import raphson as rp

matplotlib = pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'raphson[plot]'")
matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def drawn(axes):
    """The figure goes through a renderer, where mistakes in texts and sizes show."""
    first = np.ravel(axes)[0]
    first.figure.canvas.draw()
    return axes


def counts_model(n=200, seed=0):
    rng = np.random.default_rng(seed)
    x = pd.DataFrame(rng.normal(size=(n, 2)), columns=["a", "b"])
    return rp.VectorGLM(rp.Poisson()).fit(x, rng.poisson(np.exp(0.4 * x["a"] + 0.5)))


def classes_model(n=300, k=3):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, 2))
    utility = x @ rng.normal(size=(2, k)) + rng.gumbel(size=(n, k))
    return rp.MultinomialLogisticRegression().fit(
        pd.DataFrame(x, columns=["a", "b"]), np.array(list("uvw"))[utility.argmax(1)]
    )


def objective():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double().eval()
    x = torch.randn(40, 2, dtype=torch.float64)
    return rp.Objective(net, rp.Categorical(), (x, (x[:, 0] > 0).long()), l2=0.01)


def test_hessian_has_lines_between_its_blocks():
    h = rp.hessian(objective(), structure="dense")
    ax = drawn(rp.plot.hessian(h, scaled=False))
    np.testing.assert_allclose(ax.images[0].get_array(), h.to_dense())
    ends = sorted(line.get_ydata()[0] for line in ax.lines if np.ptp(line.get_ydata()) == 0)
    assert ends == [5.5, 8.5, 14.5]
    scaled = rp.plot.hessian(np.diag([4.0, 9.0]) + 1, labels=[("u", "a"), ("v", "a")]).images[0].get_array()
    np.testing.assert_allclose(scaled, [[1, 1 / np.sqrt(50)], [1 / np.sqrt(50), 1]])


def test_spectrum_tells_signs_apart_and_knows_the_condition():
    matrix = np.diag([4.0, 1.0, -0.5])
    ax = drawn(rp.plot.spectrum(rp.Dense(torch.tensor(matrix))))
    assert [line.get_label() for line in ax.lines] == ["positive (2)", "negative (1)"]
    assert ax.lines[0].get_ydata().tolist() == [4.0, 1.0] and ax.lines[1].get_ydata().tolist() == [0.5]
    assert "8" in ax.get_title()
    assert "infinite" in rp.plot.spectrum(np.diag([1.0, 0.0])).get_title()
    density = SimpleNamespace(grid=torch.arange(3.0), density=torch.ones(3), error=0.1)
    assert drawn(rp.plot.spectrum(density)).get_ylabel() == "density"


def test_coefficients_are_those_of_the_table():
    model = classes_model()
    ax = drawn(rp.plot.coefficients(model, level=0.9))
    frame = model.summary(level=0.9).to_frame()
    points = np.concatenate([line.get_xdata() for line in ax.lines[1:]])
    np.testing.assert_allclose(points, frame["coef"].to_numpy(dtype=float))
    spans = np.concatenate([[s[:, 0] for s in c.get_segments()] for c in ax.collections])
    np.testing.assert_allclose(spans, frame[["lower", "upper"]].to_numpy(dtype=float))
    assert ax.get_yticklabels()[0].get_text() == "v: (intercept)"
    ratios = drawn(rp.plot.coefficients(model, exp=True, intercepts=False))
    assert ratios.get_xscale() == "log" and len(ratios.get_yticks()) == 4


def test_convergence_of_one_and_of_several():
    model = classes_model()
    axes = drawn(rp.plot.convergence(model))
    history = model.solution_.history
    assert axes[0].lines[0].get_ydata().tolist() == [step.gradient_norm for step in history]
    slow = rp.VectorGLM(rp.Bernoulli(), solver="gradient-descent", max_iter=20).fit(np.ones((4, 1)), [1, 0, 1, 1])
    axes = drawn(rp.plot.convergence({"newton": model.solution_, "descent": slow}, against="seconds"))
    assert len(axes[0].lines) == 2 and axes[0].get_legend() is not None


def test_landscape_is_the_objective_and_its_second_order_model():
    obj = objective()
    before = obj.space.vector().clone()
    h = rp.hessian(obj, structure="dense").to_dense()
    direction = torch.linalg.eigh(h).eigenvectors[:, -1]
    ax = drawn(rp.plot.landscape(obj, direction, radius=0.5, points=5))
    for step, seen in zip(ax.lines[0].get_xdata(), ax.lines[0].get_ydata(), strict=True):
        assert np.isclose(seen, float(obj.value(before + step * direction)))
    model = ax.lines[1].get_ydata()
    assert np.isclose(model[0] + model[-1] - 2 * model[2], 0.25 * float(direction @ h @ direction))
    assert torch.equal(obj.space.vector(), before)
    shown = drawn(rp.plot.landscape(obj, np.eye(len(before))[:2], points=5)).get_title()
    assert "a bowl" in shown or "a saddle" in shown


@pytest.mark.parametrize(
    ("start", "shape"), [((0, 0), "a saddle"), ((1, 1), "a valley"), ((2, 1), "a saddle"), ((0.8, 0.8), "a bowl")]
)
def test_landscape_names_what_two_curvatures_make(start, shape):
    """Of (ab - 1)^2 / 2 the Hessian is [[b^2, 2ab - 1], [2ab - 1, a^2]]: at (1, 1) singular."""
    params = {name: torch.full((1,), float(at), dtype=torch.float64) for name, at in zip("ab", start, strict=True)}
    one = torch.ones(1, 1, dtype=torch.float64)
    obj = rp.Objective(lambda p, x: p["a"] * p["b"] * x, rp.Gaussian(), (one, one), params=params)
    shown = drawn(rp.plot.landscape(obj, np.eye(2), points=3)).get_title()
    assert f": {shape};" in shown, shown


def test_local_linear_maps():
    point = torch.tensor([1.0], dtype=torch.float64)
    ax = drawn(rp.plot.local_linear(lambda t: t.square(), point, radius=0.5))
    tangent = ax.lines[1]
    np.testing.assert_allclose(tangent.get_ydata(), 2 * tangent.get_xdata() - 1)
    turn = torch.tensor([[0.0, -2.0], [2.0, 0.0]], dtype=torch.float64)
    axes = drawn(rp.plot.local_linear(lambda t: t @ turn.T + 1, torch.zeros(2, dtype=torch.float64)))
    assert "determinant 4" in axes[1].get_title()


def test_residual_panels():
    model = counts_model()
    axes = drawn(rp.plot.residuals(model))
    assert [ax.get_xlabel() for ax in axes] == ["normal quantile"] * 2 + ["predicted mean", "a", "b"]
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), np.sort(model.residuals()["mean"]))
    assert len(drawn(rp.plot.residuals(classes_model(), columns=["b"]))) == 4
    assert len(drawn(rp.plot.residuals(model, kind="pearson", columns=[]))) == 3


def test_rootogram_hangs_observed_counts_from_expected_ones():
    model = counts_model()
    ax = drawn(rp.plot.rootogram(model))
    table = model.count_frequencies()
    bars = [(p.get_y() + p.get_height(), p.get_height()) for p in ax.patches]
    np.testing.assert_allclose(np.square([h for _, h in bars]), table["observed"], atol=1e-9)
    np.testing.assert_allclose(np.square([top for top, _ in bars]), table["expected"])
    assert table["observed"].sum() == 200 and abs(table["expected"].sum() - 200) < 0.5
    assert np.isclose(table["expected"][0], np.exp(-model.fitted_rows().means["mean"]).sum())
    with pytest.raises(rp.InputError, match="look at calibration"):
        rp.plot.rootogram(classes_model())


def test_calibration_and_confusion_count_weights():
    model = classes_model()
    ax = drawn(rp.plot.calibration(model, bins=5))
    assert [line.get_label() for line in ax.lines[1:]] == ["u", "v", "w"]
    rows = model.fitted_rows()
    # mean probabilities and shares agree over all bins, by the first-order conditions of the intercepts
    for line, name in zip(ax.lines[1:], "uvw", strict=True):
        assert np.isclose(np.mean(line.get_xdata()), rows.observed[name].mean(), atol=1e-6)
        assert np.isclose(np.mean(line.get_ydata()), rows.observed[name].mean(), atol=1e-6)
    x = np.array([[0.0], [0.0], [1.0], [1.0]])
    weighted = rp.VectorGLM(rp.Bernoulli()).fit(x, [0, 1, 0, 1], sample_weight=[5, 1, 2, 4])
    ax = drawn(rp.plot.confusion(weighted))
    assert [text.get_text() for text in ax.texts] == ["5", "2", "1", "4"] and ax.get_title() == "75.0% correct"
    drawn(rp.plot.calibration(weighted))
    with pytest.raises(rp.InputError, match=r"rp\.plot\.residuals"):
        rp.plot.confusion(counts_model())


def test_bands_and_influence():
    class Post:
        def predict(self, x):
            return SimpleNamespace(mean=x * 2, interval=lambda level: (x * 2 - 1, x * 2 + 1))

    x = torch.tensor([[2.0], [0.0], [1.0]])
    ax = drawn(rp.plot.bands(Post(), x, data=(x, x)))
    assert ax.lines[1].get_xdata().tolist() == [0, 1, 2] and ax.lines[1].get_ydata().tolist() == [0, 2, 4]
    found = SimpleNamespace(rows=torch.arange(4), cook=torch.tensor([0.1, 0.5, 0.2, 0.05]))
    ax = drawn(rp.plot.influence(found, named=1))
    assert [text.get_text() for text in ax.texts] == ["1"]


def test_a_map_over_two_inputs_shows_the_likeliest_class_or_the_spread():
    grid = torch.cartesian_prod(torch.linspace(-1, 1, 21), torch.linspace(-1, 1, 21))
    x, y = torch.tensor([[-0.5, 0.0], [0.5, 0.2]]), torch.tensor([0, 1])

    class Classes:
        def predict(self, x):
            p = torch.sigmoid(3 * x[:, 0])
            mean = torch.stack([1 - p, p], 1)
            return SimpleNamespace(mean=mean, variance=mean * (1 - mean), interval=lambda level: None)

    ax = drawn(rp.plot.bands(Classes(), grid, data=(x, y)))
    assert ax.get_title() == "Probability of the likeliest class"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "1"]
    fill, border = ax.collections
    assert fill.levels[0] == 0.5 and fill.levels[-1] == 1.0
    # the border lies where the two are as likely
    np.testing.assert_allclose(np.vstack([path.vertices for path in border.get_paths()])[:, 0], 0.0, atol=1e-6)

    class One:
        def predict(self, x):
            p = torch.sigmoid(3 * x[:, :1])
            return SimpleNamespace(mean=p, variance=p * (1 - p), interval=lambda level: None)

    assert drawn(rp.plot.bands(One(), grid)).get_title() == "Probability of the likeliest class"

    class Spread:
        def predict(self, x):
            return SimpleNamespace(mean=x[:, :1], variance=4 * x[:, 1:] ** 2 + 1, interval=lambda level: None)

    ax = drawn(rp.plot.bands(Spread(), grid, data=(x, x[:, 0])))
    assert ax.get_title() == "Standard deviation of a new target"
    low, high = ax.collections[0].zmin, ax.collections[0].zmax
    np.testing.assert_allclose([low, high], [1.0, 5**0.5], rtol=1e-6)


def test_errors_are_sentences():
    with pytest.raises(rp.InputError, match="square matrix"):
        rp.plot.hessian(np.ones((2, 3)))
    with pytest.raises(rp.InputError, match="spectral_density"):
        rp.plot.spectrum(rp.Diagonal(torch.ones(5000)))
    with pytest.raises(rp.InputError, match=r"Entry \(0, 1\)"):
        rp.plot.hessian(np.array([[1.0, np.nan], [1.0, 1.0]]))
    with pytest.raises(rp.InputError, match="1 labels for 2"):
        rp.plot.hessian(np.eye(2), labels=["a"])
    with pytest.raises(rp.InputError, match="directions has shape"):
        rp.plot.landscape(objective(), np.ones(3))
    with pytest.raises(rp.InputError, match="two outputs"):
        rp.plot.local_linear(lambda t: t.sum(1, keepdim=True), torch.zeros(3))
    with pytest.raises(rp.InputError, match="pass a fitted estimator"):
        rp.plot.residuals(objective())
    with pytest.raises(rp.InputError, match="'iteration' or 'seconds'"):
        rp.plot.convergence(counts_model(), against="time")
    with pytest.raises(rp.InputError, match="one input"):
        rp.plot.bands(None, torch.ones(3, 3))
    with pytest.raises(rp.InputError, match="on a line"):
        rp.plot.bands(SimpleNamespace(predict=lambda x: SimpleNamespace(mean=x, interval=None)), torch.ones(3, 2))


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: rp.plot.hessian([[1, 2], [3]]), "array or tensor of numbers"),
        (lambda: rp.plot.hessian(np.eye(2), ax=3), "ax is a int"),
        (lambda: rp.plot.spectrum(np.array([[1.0, 2.0], [3.0, 4.0]])), r"Entries \(0, 1\) and \(1, 0\).* 2 and 3"),
        (lambda: rp.plot.hessian(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), "symmetric"),
        (lambda: rp.plot.landscape(counts_model(), np.ones(3)), "pass an objective"),
        (lambda: rp.plot.landscape(objective(), None), "directions has shape"),
        (lambda: rp.plot.landscape(objective(), "random"), "array or tensor of numbers"),
        (lambda: rp.plot.landscape(objective(), np.full(len(objective().space.vector()), np.nan)), "NaN or infinity"),
        (lambda: rp.plot.landscape(objective(), np.ones(len(objective().space.vector())), radius=-1), "radius is -1"),
        (lambda: rp.plot.landscape(objective(), np.ones(len(objective().space.vector())), points=2.5), "whole number"),
        (lambda: rp.plot.local_linear(3, torch.zeros(2)), "pass a module or a function"),
        (lambda: rp.plot.residuals(counts_model(), axes=[None]), r"5 panels, and 1 axes"),
        (lambda: rp.plot.residuals(counts_model(), columns="agee"), "no column named 'agee'"),
        (lambda: rp.plot.residuals(counts_model(), generator="a"), "generator is 'a'"),
        (lambda: rp.plot.rootogram(counts_model(), largest=-1), "largest is -1"),
        (lambda: rp.plot.calibration(classes_model(), bins=0), "bins is 0"),
        (lambda: rp.plot.calibration(classes_model(), level=95), "level is 95"),
        (lambda: rp.plot.convergence(counts_model(), axes=[None]), "2 panels, and 1"),
    ],
)
def test_wrong_input_is_one_sentence(draw, words):
    with pytest.raises(rp.InputError, match=words):
        draw()


def test_one_column_by_name_and_a_point_of_numpy():
    assert len(rp.plot.residuals(counts_model(), columns="a")) == 4
    assert len(rp.plot.local_linear(lambda rows: rows**2, np.array([1.0, 2.0]))) == 2


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(rp.RaphsonError, match=r"pip install 'raphson\[plot\]'"):
        rp.plot.hessian(np.eye(2))


def test_coverage_and_training_read_back():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2))
    model = rp.VectorGLM(rp.Gaussian()).fit(x, x[:, 0] + rng.normal(size=80))
    ax = rp.plot.coverage(model)
    level, excess = ax.lines[-1].get_data()
    inside = np.abs(model.residuals().to_numpy()) <= stats.norm.ppf(0.5 + level[10] / 2)
    assert excess[10] == pytest.approx(inside.mean() - level[10])
    assert ax.get_title() == "Coverage of 80 predictive intervals"
    net = rp.BayesianMLP(rp.Gaussian(), hidden=(2,), max_iter=3).fit(x, x[:, 0])
    ax = rp.plot.training(net)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), net.bounds_)
    assert ax.lines[1].get_ydata() == [max(net.bounds_)]
    with pytest.raises(rp.InputError, match="BayesianMLP"):
        rp.plot.training(model)


def test_many_classes_with_long_names_stay_readable():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 2))
    names = np.array([f"a class with the number {i:02d}" for i in range(25)])
    y = names[(x @ rng.normal(size=(2, 25)) + rng.gumbel(size=(1500, 25))).argmax(1)]
    model = rp.MultinomialLogisticRegression().fit(x, y)
    ax = drawn(rp.plot.hessian(model.hessian()))
    texts = [text for text in ax.texts if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    assert len({text.get_text() for text in texts}) == len(texts) == 24
    assert all(a.y0 >= b.y1 - 1 or b.y0 >= a.y1 - 1 for a, b in zip(boxes, boxes[1:], strict=False))
    ax = drawn(rp.plot.calibration(model))
    assert "first 8 of 25 classes" in ax.get_title() and ax.get_xlim()[1] < 0.9
    ax = drawn(rp.plot.confusion(model))
    assert ax.figure.get_figwidth() <= 9
    small = rp.MultinomialLogisticRegression().fit(x, y < names[12])
    assert rp.plot.calibration(small).get_xlim()[1] == pytest.approx(1.02)
