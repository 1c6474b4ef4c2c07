"""The door to compiled code: what it refuses, and what it says is there."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import raphson
from raphson import _native
from raphson._native import _module
from raphson._native._config import Config
from raphson._native._module import memory

compiled = pytest.mark.skipif(_module.kernels is None, reason=_module.reason or "built")
N, D, C = 30, 5, 3


def zeros(*shape, dtype=torch.float64):
    return torch.zeros(shape, dtype=dtype)


def given(**changes):
    """A model of 30 examples with an intercept, four columns by rows and three outputs."""
    parts = {
        "x": zeros(N, D - 1),
        "center": zeros(D - 1),
        "factor": zeros(D - 1),
        "intercept": True,
        "weights": zeros(N),
        "penalty_outputs": zeros(2),
        "penalty_columns": zeros(D),
        "n_outputs": C,
        "scale": 1.0,
        "exponential": False,
    }
    return _native.LinearModel(**parts | changes)


WRONG_MODELS = {
    "no matrix": {"x": zeros(N)},
    "single precision": {"x": zeros(N, D - 1, dtype=torch.float32)},
    "columns apart": {"x": zeros(D - 1, N).mT},
    "whole numbers": {"weights": zeros(N, dtype=torch.int64)},
    "few weights": {"weights": zeros(N - 1)},
    "few centers": {"center": zeros(D - 2)},
    "no centers": {"center": None},
    "many factors": {"factor": zeros(D)},
    "few penalties": {"penalty_columns": zeros(D - 1)},
    "penalties apart": {"penalty_outputs": zeros(4)[::2]},
    "other penalties": {"penalty_outputs": zeros(C, C)},
    "elsewhere": {"weights": torch.zeros(N, dtype=torch.float64, device="meta")},
    "other features": {"x": zeros(N, D)},
    "no penalty": {"penalty_columns": None, "penalty_outputs": None},
}


def evaluate(model, coef=None, linear=None, units=None, *, reference=True, kept=None):
    """Evaluate a model at zero, or what is given."""
    linear, units = (zeros(C, D) if linear is None else linear), (zeros(3, D) if units is None else units)
    return _native.Evaluator(model, linear, reference, units).at(zeros(C * D) if coef is None else coef, kept)


@compiled
@pytest.mark.parametrize("changes", WRONG_MODELS.values(), ids=WRONG_MODELS)
def test_models_whose_parts_do_not_fit_are_refused(changes):
    """No wrong shape, element type, stride or device reaches the sums."""
    with pytest.raises(ValueError):
        evaluate(given(**changes))


@compiled
def test_wrong_vectors_and_results_are_refused():
    """Coefficients, terms, probabilities and results are of one model, or nothing is read or written."""
    model, p, out = given(), zeros(C + 1, N), zeros(C * D, C * D)
    point = evaluate(model, kept=torch.float32)
    assert point.value == point.norm == 0.0 and point.gradient.shape == (C * D,)  # weights are zero
    assert point.p.shape == (C + 1, N)
    assert _native.hessian(model, p, out, own=False) is out
    assert _native.product(model, None, p, zeros(C * D)).shape == (C * D,)
    assert _native.adjoint(model, zeros(C, N)).shape == (C, D)
    single = zeros(C * D, dtype=torch.float32)
    calls = [
        lambda: evaluate(model, coef=zeros(2)),
        lambda: evaluate(model, linear=zeros(C, D - 1)),
        lambda: evaluate(model, units=zeros(2, D)),
        lambda: evaluate(model, kept=torch.float16),
        lambda: evaluate(replace(model, exponential=True), reference=False),
        lambda: _native.hessian(model, p[:, 1:].contiguous(), out, own=False),
        lambda: _native.hessian(model, p.float(), out, own=False),
        lambda: _native.hessian(model, p[:1], out, own=False),
        lambda: _native.hessian(replace(model, exponential=True), p[:C], zeros(C * D, C * D), own=False),
        lambda: _native.hessian(replace(model, exponential=True), p, zeros(C + 1, D, D), own=True),
        lambda: _native.hessian(model, p, out[1:], own=False),
        lambda: _native.hessian(model, p, zeros(C + 1, D, D), own=True),
        lambda: _native.hessian(model, p, out.long(), own=False),
        lambda: _native.product(model, None, p[:1], zeros(C * D)),
        lambda: _native.product(model, None, p, zeros(C * D - 1)),
        lambda: _native.product(model, zeros(D, N), p.float(), single),
        lambda: _native.product(model, zeros(D, N - 1, dtype=torch.float32), p.float(), single),
        lambda: _native.adjoint(model, zeros(C, N + 1)),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(ValueError):
            call()
            pytest.fail(f"call {number} went through")


@compiled
def test_the_compiled_module_checks_again():
    """Whoever calls it past the door: sizes, types and numbers of arguments are refused in C."""
    whole_model, kernels = given(), _module.kernels
    model = whole_model.arguments
    kept = []  # what an address leads to must live

    def at(*shape, dtype=torch.float64):
        kept.append(zeros(*shape, dtype=dtype))
        return memory("numbers", kept[-1], *shape, dtype=dtype)

    a = {"theta": at(C * D), "out": at(C * D), "p": at((C + 1) * N), "units": at(3 * D)}
    small, empty, whole = at(2), (0, C * D, "d"), at(C * D, dtype=torch.int64)

    names = [
        *(
            "n",
            "width",
            "stride",
            "factor",
            "center",
            "starts",
            "columns",
            "x",
            "intercept",
            "in_place",
            "weights",
            "c",
        ),
        *("penalty_outputs", "penalty_columns", "exponential", "scale"),
    ]

    def changed(**parts):
        return tuple(parts.get(name, part) for name, part in zip(names, model, strict=True))

    theta, units, p, out = a["theta"], a["units"], a["p"], a["out"]
    single = at(C * D, dtype=torch.float32)
    nothing = None, None, False, None, None

    def evaluate(of, *, threads=1, out=out, coef=theta, p=None, columns=None, kept=None, copy=None, **targets):
        targets = {"linear": theta, "units": units} | targets
        return kernels.sums(of, threads, out, coef, p, columns, *targets.values(), True, kept, copy)

    for wrong in (small, empty, whole, (theta[0], C * D, "x"), (theta[0], C * D, "?")):
        for name in ("coef", "linear", "units", "out", "kept", "p", "columns", "copy"):
            with pytest.raises(ValueError):
                evaluate(model, **{name: wrong})
        with pytest.raises(ValueError):
            kernels.sums(model, 1, wrong, theta, p, None, *nothing)
        with pytest.raises(ValueError):
            kernels.sums(model, 1, out, theta, wrong, None, *nothing)
        with pytest.raises(ValueError):
            kernels.sums(model, 1, wrong, None, p, None, *nothing)
    for wrong in (
        changed(x=small),
        changed(n=N + 1),
        changed(n=2**62),
        changed(width=D),
        changed(stride=D),
        changed(stride=2**63),
        changed(weights=small),
        changed(penalty_outputs=empty),
        changed(penalty_columns=small),
        changed(penalty_outputs=None),
        changed(penalty_columns=None),
        changed(penalty_outputs=None, penalty_columns=None),
        changed(c=C + 1),
        changed(c=2**63),
        changed(factor=None),
    ):
        with pytest.raises(ValueError):
            evaluate(wrong, kept=at(C + 1, N))
    for threads in (0, 1025):
        with pytest.raises(ValueError):
            evaluate(model, threads=threads)
    no_penalty = changed(penalty_outputs=None, penalty_columns=None)
    for arguments in (
        (model, 1, out, None, None, None, *nothing),
        (model, 1, out, theta, None, None, *nothing),
        (model, 1, out, None, p, at(D, N - 1), *nothing),
        (model, 1, single, single, p, None, *nothing),
        (model, 1, out, None, p, None, None, None, False, p, None),
        (model, 1, single, single, None, None, theta, units, True, None, None),
        (no_penalty, 1, out, theta, p, None, *nothing),
    ):
        with pytest.raises(ValueError):
            kernels.sums(*arguments)
    for missing in ({"coef": None}, {"units": None}, {"linear": None}):
        with pytest.raises((ValueError, TypeError)):
            evaluate(model, **missing)
    with pytest.raises(ValueError):
        kernels.hessian(changed(c=C + 2, penalty_outputs=None, penalty_columns=None), 1, p, False, at(625))
    for function in (kernels.sums, kernels.hessian, kernels.sparse):
        with pytest.raises(TypeError, match="arguments"):
            function(model, 1)
        with pytest.raises(TypeError):
            function(None, 1, 2, 3, 4, 5, 6)
    assert evaluate(model) == (0.0, 0.0)  # weights are zero
    good = 1, out, theta, p, None, *nothing
    for arguments in (
        (model, 1, out, 5, *good[3:]),
        (changed(center=None), *good),
        (model[:12], *good),
        ((*model, 1), *good),
        (model, *good, 1),
        (model, 1, (*out, 1), *good[2:]),
    ):
        with pytest.raises(TypeError):
            kernels.sums(*arguments)


def sparse(**changes):
    """The arguments of a product of a sparse matrix (3, 4) of 5 nonzeros with a dense one (4, 8)."""
    return {
        "starts": torch.tensor([0, 2, 2, 5]),
        "columns": torch.tensor([0, 3, 1, 2, 3], dtype=torch.int32),
        "values": torch.ones(5, dtype=torch.float64),
        "dense": torch.ones(4, 8, dtype=torch.float64),
        "out": torch.zeros(3, 8, dtype=torch.float64),
    } | changes


WRONG_SPARSE = {
    "a column too large": {"columns": torch.tensor([0, 3, 1, 2, 4], dtype=torch.int32)},
    "a negative column": {"columns": torch.tensor([0, 3, 1, 2, -1], dtype=torch.int32)},
    "wide columns": {"columns": torch.tensor([0, 3, 1, 2, 3])},
    "few columns": {"columns": torch.tensor([0, 3, 1, 2], dtype=torch.int32)},
    "starts beyond the end": {"starts": torch.tensor([0, 2, 2, 6])},
    "negative starts": {"starts": torch.tensor([-1, 2, 2, 5])},
    "starts that go back": {"starts": torch.tensor([0, 9, 2, 5])},
    "narrow starts": {"starts": torch.tensor([0, 2, 2, 5], dtype=torch.int32)},
    "few rows of the dense matrix": {"dense": torch.ones(3, 8, dtype=torch.float64)},
    "rows that are no whole vectors": {"dense": torch.ones(4, 7, dtype=torch.float64)},
    "a storage that ends early": {"dense": torch.ones(31, dtype=torch.float64).as_strided((4, 7), (8, 1))},
    "another type": {"dense": torch.ones(4, 8)},
    "few rows of the result": {"out": torch.zeros(2, 8, dtype=torch.float64)},
    "a narrow result": {"out": torch.zeros(3, 7, dtype=torch.float64)},
    "result of another type": {"out": torch.zeros(3, 8)},
    "half precision": {"values": torch.ones(5, dtype=torch.float16)},
}


@compiled
@pytest.mark.parametrize("changes", WRONG_SPARSE.values(), ids=WRONG_SPARSE)
def test_sparse_products_whose_parts_do_not_fit_are_refused(changes):
    """Indices out of range and wrong sizes are refused; the product itself goes through."""
    right = sparse()
    _native.sparse_product(**right)
    assert right["out"][:, 0].tolist() == [2.0, 0.0, 3.0]
    with pytest.raises(ValueError):
        _native.sparse_product(**sparse(**changes))


@compiled
def test_compiled_sparse_products_check_again():
    """Sizes past the door are refused in C."""
    good = sparse()
    types = {"starts": torch.int64, "columns": torch.int32}
    starts, columns, values, dense, out = (
        memory(name, tensor, *tensor.shape, dtype=types.get(name, torch.float64)) for name, tensor in good.items()
    )
    _module.kernels.sparse(starts, columns, values, 8, dense, out, 1)
    for width in (0, 4, 16, 2**63):
        with pytest.raises(ValueError):
            _module.kernels.sparse(starts, columns, values, width, dense, out, 1)
    none = (starts[0], 0, "q")  # not even the first start
    with pytest.raises(ValueError):
        _module.kernels.sparse(none, columns, values, 8, dense, out, 1)


@compiled
def test_pytorch_is_preferred_where_it_has_more_threads(monkeypatch):
    """Without OpenMP compiled code takes what PyTorch would not share out either, or all where that has one thread."""
    assert _native.is_available() == (_module.runtime() != "" or torch.get_num_threads() == 1)
    monkeypatch.setattr(_module.kernels, "openmp", "")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert not _native.is_available() and _native.is_available(100.0)
    assert _module.threads(1e12, 1.0) == 1
    assert "all but small work goes through PyTorch" in repr(raphson.show_config())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert _native.is_available()


@compiled
def test_threads_are_those_of_pytorch():
    """Where PyTorch computes with OpenMP on Linux, its threads are found; one library's, not a second one's."""
    if sys.platform == "linux" and "OpenMP" in torch.__config__.parallel_info():
        assert "omp" in _module.runtime()
        assert _module.threads(1e12, 1.0) == torch.get_num_threads()


def test_the_configuration_is_said_in_sentences(monkeypatch):
    """Versions, whether compiled code was built or why not, its vectors and threads."""
    config = raphson.show_config()
    assert isinstance(config, Config)
    text = repr(config)
    for part in (raphson.__version__, torch.__version__, "NumPy", "Python", "Compiled code is"):
        assert part in text
    assert all(line.endswith(".") for line in text.splitlines())
    if config.built:
        assert config.vector_bits in (128, 256, 512) and f"{config.vector_bits} bits" in text and not config.reason
    monkeypatch.setattr(_module, "kernels", None)
    monkeypatch.setattr(_module, "reason", "not built")
    without = raphson.show_config()
    assert not without.built and without.vector_bits == without.threads == 0
    assert "Compiled code is not built; everything goes through PyTorch." in repr(without)
    assert not _native.is_available(1.0)


def run(setting: str) -> subprocess.CompletedProcess[str]:
    code = f"import os; os.environ['RAPHSON_NATIVE'] = '{setting}'; import raphson; print(raphson.show_config())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_environment_variable_decides():
    """0 leaves compiled code aside, 1 makes its absence an error, anything else is refused."""
    assert "Compiled code is switched off by RAPHSON_NATIVE=0; everything" in run("0").stdout
    assert "RAPHSON_NATIVE is 'yes'; it must be 0" in run("yes").stderr
    required = run("1")
    assert (required.returncode == 0) == (_module.load("")[0] is not None)


def test_a_module_that_is_missing_or_broken_is_told_apart(monkeypatch):
    """Not built says how to build it; built and not loading says the loader's reason; required is an ImportError."""

    def loading(error):
        def find(name, *rest):
            if name == "raphson._native._kernels":
                raise error
            return real(name, *rest)

        monkeypatch.setattr("builtins.__import__", find)

    real = __import__
    loading(ModuleNotFoundError("no such module"))
    assert _module.load("")[1].startswith("not built (install raphson again")
    with pytest.raises(ImportError, match="RAPHSON_NATIVE is 1, and the compiled code is not built"):
        _module.load("1")
    loading(ImportError("undefined symbol"))
    assert _module.load("")[1] == "built, but does not load (undefined symbol)"


def sparse_model(**changes):
    """A model whose table is the sparse matrix of ``sparse``, with an intercept and three outputs."""
    right = sparse()
    parts = {
        **{"x": right["values"], "starts": right["starts"], "columns": right["columns"]},
        **{"center": zeros(4), "factor": zeros(4), "weights": zeros(3), "in_place": True},
    }
    return given(**parts | changes)


WRONG_TABLES = {
    **{name: changes for name, changes in WRONG_SPARSE.items() if set(changes) <= {"starts", "columns"}},
    "few values": {"x": zeros(4)},
    "values of a matrix": {"x": zeros(5, 1)},
    "few rows": {"starts": torch.tensor([0, 2, 5])},
    "no row": {"starts": torch.tensor([0])},
    "no columns": {"columns": None},
    "no factors": {"center": None, "factor": None},
    "few factors": {"center": zeros(3), "factor": zeros(3), "penalty_columns": zeros(4)},
}


@compiled
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("changes", WRONG_TABLES.values(), ids=WRONG_TABLES)
def test_sparse_tables_whose_parts_do_not_fit_are_refused(changes, threads, monkeypatch):
    """Indices out of range and wrong sizes are refused by evaluations and sums; the table itself goes through."""
    monkeypatch.setattr(_module, "threads", lambda *_: threads)
    right, t = sparse_model(weights=None), torch.ones(C, 3, dtype=torch.float64)
    assert _native.adjoint(replace(right, factor=zeros(4) + 1), t)[0].tolist() == [3.0, 1.0, 1.0, 1.0, 2.0]
    calls = [lambda model: _native.adjoint(model, zeros(C, model.n)), lambda model: _native.adjoint(model, t)]
    calls.append(lambda model: _native.product(model, None, zeros(C + 1, 3), zeros(C * D)))
    calls.append(evaluate)
    for call in calls:
        with pytest.raises((ValueError, TypeError)):
            call(sparse_model(**changes))


@compiled
def test_sparse_tables_are_read_in_double_precision_and_have_no_dense_hessian():
    """What there is no code for is refused, not read as something else."""
    model, p = sparse_model(), zeros(C + 1, 3)
    assert _native.product(model, None, p, zeros(C * D)).shape == (C * D,)
    for call in (
        lambda: _native.hessian(model, p, zeros(C * D, C * D), own=False),
        lambda: _native.product(model, None, p.float(), zeros(C * D, dtype=torch.float32)),
        lambda: _native.product(model, zeros(D, 3), p, zeros(C * D)),
    ):
        with pytest.raises(ValueError):
            call()
    arguments, out, numbers = list(model.arguments), zeros(C * D), zeros(C * 3)
    arguments[5] = (arguments[5][0], 0, "q")  # no start at all
    for n in (0, 3, 2**64 - 1):
        arguments[0] = n
        given_memory = memory("out", out, C * D), None, memory("p", numbers, C * 3), None
        with pytest.raises(ValueError):
            _module.kernels.sums(tuple(arguments), 1, *given_memory, None, None, False, None, None)


@compiled
def test_tables_in_single_precision_are_there_for_evaluations_in_place():
    """Other sums of one are refused, and so are few columns, numbers of another type, and copies of another size."""
    d = 32
    wide = {"center": zeros(d), "factor": zeros(d), "penalty_columns": zeros(d + 1), "in_place": True}
    double = given(x=zeros(N, d), **wide)
    single = given(x=zeros(N, d, dtype=torch.float32), **wide)
    linear, units, size = zeros(C, d + 1), zeros(3, d + 1), C * (d + 1)

    def at(model, coef, copy=None, kept=None):
        return _native.Evaluator(model, linear, True, units).at(coef, kept, copy)

    assert at(single, zeros(size, dtype=torch.float32)).gradient.dtype == torch.float32
    assert at(double, zeros(size), zeros(N, d, dtype=torch.float32)).gradient.dtype == torch.float64
    narrow = given(x=zeros(N, D - 1, dtype=torch.float32), in_place=True)
    for call in (
        lambda: at(single, zeros(size)),
        lambda: at(single, zeros(size, dtype=torch.float32), zeros(N, d, dtype=torch.float32)),
        lambda: at(double, zeros(size), zeros(N, d)),
        lambda: at(double, zeros(size), zeros(N - 1, d, dtype=torch.float32)),
        lambda: evaluate(narrow, zeros(C * D, dtype=torch.float32)),
        lambda: _native.hessian(single, zeros(C + 1, N), zeros(size, size), own=False),
        lambda: _native.product(single, None, zeros(C + 1, N), zeros(size)),
        lambda: _native.adjoint(single, zeros(C, N)),
    ):
        with pytest.raises(ValueError):
            call()
