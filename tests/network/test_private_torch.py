"""What is assumed about private names of PyTorch: each is used in one file, which ARCHITECTURE.md lists.

Where one of these tests fails, PyTorch has changed: mend the file that is named, the only one that has to know.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from raphson._errors import InputError
from raphson.network import _checks, _module_parts, _onednn, _plain_run, _tensor_memory
from raphson.network.autodiff import _vjp_rules
from raphson.network.layers import _open_attention

NETWORK = Path(__file__).parents[2] / "raphson" / "network"
ARCHITECTURE = NETWORK.parents[1] / "ARCHITECTURE.md"

HOMES = {
    "_module_parts.py": r"(?<!network)\._parameters\b|\._modules\b|_orig_mod|_forward_hooks|_forward_pre_hooks"
    r"|_backward_hooks|_backward_pre_hooks"
    r"|\b_BatchNorm\b|\b_DropoutNd\b|\b_InstanceNorm\b",
    "_tensor_memory.py": r"\._version\b|\._base\b|\._is_view\b|_unsafe_view|torch\._C\b",
    "_checks.py": r"_python_dispatch|\._schema\b",
    "_onednn.py": r"_linear_pointwise",
    "_plain_run.py": r"checkpoint\.__file__|CheckpointFunction",
    "autodiff/_vjp_rules.py": r"Backward0|\b_saved_|_input_metadata|_forward_cls|BackwardCFunction",
    "layers/_open_attention.py": r"has_torch_function|__globals__",
}


def changed(file: str, what: str) -> str:
    return f"PyTorch {torch.__version__} no longer has {what}: mend raphson/network/{file}"


@pytest.mark.parametrize("home", HOMES)
def test_each_is_used_in_one_file_and_listed(home):
    users = {
        str(file.relative_to(NETWORK))
        for file in NETWORK.rglob("*.py")
        if re.search(HOMES[home], re.sub(r'""".*?"""', "", file.read_text(encoding="utf-8"), flags=re.DOTALL))
    }
    assert users == {home}
    assert f"`network/{home}`" in ARCHITECTURE.read_text(encoding="utf-8")


def test_versions_and_views_of_tensors():
    file = "_tensor_memory.py"
    t = torch.zeros(3)
    before = _tensor_memory.in_place_version(t)
    t.detach().add_(1)
    assert _tensor_memory.in_place_version(t) == before + 1, changed(file, "Tensor._version, seen through detach()")
    assert _tensor_memory.base_of(t[1:]) is t and _tensor_memory.base_of(t) is t, changed(file, "Tensor._base")
    view = torch.zeros(3, requires_grad=True).mul(2)[1:]
    plain = _tensor_memory.no_longer_view(view)
    assert not plain._is_view() and plain.data_ptr() == view.data_ptr(), changed(file, "aten._unsafe_view")
    assert _tensor_memory.no_longer_view(t) is t, changed(file, "Tensor._is_view")


def test_calls_are_hidden_from_function_modes():
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    t = torch.zeros(3)
    with Watch():
        with _tensor_memory.unseen_by_modes():
            _ = t.storage_offset(), t.size(), t.detach()
        assert not seen, changed("_tensor_memory.py", "torch._C.DisableTorchFunction for modes")
        _ = t.detach()
    assert seen


def test_transformed_tensors_are_told_apart():
    seen = []
    t = torch.zeros(3)
    torch.vmap(lambda x: seen.append(_tensor_memory.inside_transformation(x)) or x)(t)
    torch.func.grad(lambda x: seen.append(_tensor_memory.inside_transformation(x)) or x.sum())(t)
    assert seen == [True, True] and not _tensor_memory.inside_transformation(t), changed(
        "_tensor_memory.py", "torch.func.debug_unwrap"
    )


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_checkpoints():
    seen = []

    def part(x):
        seen.append(_plain_run.checkpoint_around())
        return x * 2

    part(torch.ones(1))
    for reentrant in (False, True):
        checkpoint(part, torch.ones(1), use_reentrant=reentrant)
    assert seen == [None, "plain", "reentrant"], changed("_plain_run.py", "CheckpointFunction.forward")


def test_parts_of_modules():
    file, shared = "_module_parts.py", nn.Linear(2, 2)
    twice = nn.Sequential(shared, shared)
    assert [name for name, _ in _module_parts.children(twice)] == ["0", "1"], changed(file, "Module._modules")
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    assert _module_parts.ModuleStructure(tied, True).places["1.weight"] == "0.weight", changed(
        file, "Module._parameters"
    )
    assert _module_parts.is_plain(shared)
    for register in (shared.register_forward_hook, shared.register_forward_pre_hook):
        handle = register(lambda *_: None)
        assert not _module_parts.is_plain(shared), changed(file, "Module._forward_hooks and _forward_pre_hooks")
        handle.remove()
    for register in (shared.register_full_backward_hook, shared.register_full_backward_pre_hook):
        handle = register(lambda *_: None)
        assert _module_parts._calls(shared), changed(file, "Module._backward_hooks and _backward_pre_hooks")
        handle.remove()
    for part, base in (
        *((nn.BatchNorm1d(2), "_BatchNorm"), (nn.SyncBatchNorm(2), "_BatchNorm")),
        *((nn.Dropout2d(), "_DropoutNd"), (nn.AlphaDropout(), "_DropoutNd"), (nn.InstanceNorm3d(2), "_InstanceNorm")),
    ):
        assert isinstance(part, getattr(_module_parts, base)), changed(file, f"{base} as a base of {type(part)}")


def test_operations_are_seen_as_they_run():
    class Fused(TorchDispatchMode):
        names: set[str] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.add(func.__name__)
            return func(*args, **(kwargs or {}))

    def names_of(call):
        with torch.no_grad(), _checks._Kernels() as kernels:
            call()
        return kernels.names

    q, images = torch.ones(1, 2, 8, 4), torch.ones(2, 3, 5, 5)
    file, what = "_checks.py", "the name of an operation: {}"
    expected = {
        "_ATTENTION": lambda: F.scaled_dot_product_attention(q, q, q),
        "_RECURRENT": lambda: nn.LSTM(4, 3)(q[0]),
        "_ONCE": lambda: (F.hardsigmoid(q), torch.cdist(q, q), torch._weight_norm(q[0, 0], q[0, 0, :, :1])),
    }
    for group, call in expected.items():
        parts = getattr(_checks, group)
        assert any(part in name for name in names_of(call) for part in parts), changed(file, what.format(group))
    for call, part in (
        (lambda: F.conv2d(images, torch.ones(1, 3, 2, 2)), "convolution"),
        (lambda: F.batch_norm(images, torch.zeros(3), torch.ones(3)), "batch_norm"),
    ):
        assert any(part in name for name in names_of(call)), changed(file, what.format(part))
    for call in (
        lambda: F.dropout(q, 0.001),
        lambda: torch.randn(2),
        lambda: torch.randperm(3),
        lambda: F.rrelu(q, 0, 1, True),
    ):
        with _checks._Kernels() as kernels:
            call()
        assert "draws random" in str(kernels.trouble), changed(
            file, "Tag.nondeterministic_seeded, or generator in schemas"
        )
    with _checks._Kernels() as kernels:
        F.scaled_dot_product_attention(q, q, q), F.rrelu(q, 0, 1, False), F.dropout(q, 0.5, False)
    assert kernels.trouble is None, changed(file, "dropout_p and training in the schemas of operations")
    with _checks._Kernels() as kernels:
        _ = torch.ones(3).add(1).view(3, 1)
    assert kernels.entries == 6, changed(file, "alias_info in the schema of an operation, which tells views apart")


SAVED = {
    "AddBackward0": (lambda h: h + h * 2, ["alpha"]),
    "MulBackward0": (lambda h: h * h.detach(), ["self", "other"]),
    "AddmmBackward0": (lambda h: torch.addmm(torch.zeros(4), h[0, 0], torch.ones(4, 4)), ["alpha", "mat2"]),
    "ViewBackward0": (lambda h: h.view(-1), []),
    "UnsafeViewBackward0": (lambda h: h @ torch.ones(4, 2), []),
    "MaxPool2DWithIndicesBackward0": (
        lambda h: F.max_pool2d(h, 2),
        ["self", "result1", "kernel_size", "stride", "padding", "dilation", "ceil_mode"],
    ),
}


@pytest.mark.parametrize("name", SAVED)
def test_nodes_have_their_names_and_what_they_saved(name):
    function, saved = SAVED[name]
    node = function(torch.ones(1, 2, 4, 4, requires_grad=True).clone()).grad_fn
    assert name in _vjp_rules._RULES
    assert node.name() == name, changed("autodiff/_vjp_rules.py", f"the node {name}: it is {node.name()}")
    for what in saved:
        assert hasattr(node, f"_saved_{what}"), changed("autodiff/_vjp_rules.py", f"_saved_{what} of {name}")


ELEMENTWISE = {
    **{f"{f.__name__.title()}Backward0": f for f in (torch.relu, torch.tanh, torch.sigmoid, torch.exp, torch.log)},
    **{
        f"{f.__name__.title()}Backward0": f
        for f in (torch.sqrt, torch.rsqrt, torch.sin, torch.cos, torch.neg, torch.abs)
    },
    **{
        f"{f.__name__.title()}Backward0": f
        for f in (F.gelu, F.silu, F.softplus, F.elu, F.hardtanh, F.hardswish, F.mish)
    },
    "LeakyReluBackward0": F.leaky_relu,
    "LogSigmoidBackward0": F.logsigmoid,
    "PowBackward0": lambda h: h**3,
    "ClampBackward1": lambda h: h.clamp(0.5, 0.7),
    "ThresholdBackward0": lambda h: F.threshold(h, 0.1, 0.0),
}


@pytest.mark.parametrize("name", sorted(_vjp_rules._ELEMENTWISE))
def test_elementwise_nodes_have_their_names(name):
    found = ELEMENTWISE[name](torch.ones(3, requires_grad=True).clone()).grad_fn.name()
    assert found == name, changed("autodiff/_vjp_rules.py", f"the node {name}: it is {found}, and its rule is not used")


VMAPPED = {
    "MmBackward0": lambda h: h @ h,
    "BmmBackward0": lambda h: torch.bmm(h[None], h[None]),
    "TBackward0": lambda h: h.t(),
    "TransposeBackward0": lambda h: h.transpose(0, 1),
    "PermuteBackward0": lambda h: h.permute(1, 0),
    "UnsqueezeBackward0": lambda h: h.unsqueeze(0),
    "SqueezeBackward1": lambda h: h[None].squeeze(0),
    "SumBackward0": lambda h: h.sum(),
    "SumBackward1": lambda h: h.sum(0),
    "MeanBackward0": lambda h: h.mean(),
    "MeanBackward1": lambda h: h.mean(0),
    "SoftmaxBackward0": lambda h: h.softmax(0),
    "ExpandBackward0": lambda h: h.expand(2, 3, 3),
    "DivBackward0": lambda h: h / h,
    "SelectBackward0": lambda h: h[0],
    "SubBackward0": lambda h: h - h,
    "CloneBackward0": lambda h: h.clone(),
}


@pytest.mark.parametrize("name", sorted(_vjp_rules._VMAPPED))
def test_nodes_for_vmap_have_their_names(name):
    found = VMAPPED[name](torch.ones(3, 3, requires_grad=True) * 1).grad_fn.name()
    assert found == name, changed("autodiff/_vjp_rules.py", f"the node {name}: it is {found}, and its rule is not used")


def test_nodes_know_the_shapes_of_their_results_and_the_function_that_made_them():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            return 2 * t

        @staticmethod
        def backward(ctx, g):
            return 2 * g

        @staticmethod
        def batched_backward(ctx, wanted, g):
            return [2 * g]

    file = "autodiff/_vjp_rules.py"
    values, places = torch.sort(torch.ones(2, 3, requires_grad=True).double())
    assert _vjp_rules.results_of(values.grad_fn)[0] == ((2, 3), torch.float64), changed(file, "Node._input_metadata")
    assert places.dtype == torch.long
    node = Twice.apply(torch.ones(3, requires_grad=True)).grad_fn
    assert isinstance(node, _vjp_rules.BackwardCFunction), changed(file, "BackwardCFunction, the base of such nodes")
    assert _vjp_rules._function_of(node) is Twice, changed(file, "_forward_cls of a function's node")
    assert _vjp_rules.has_rule(node)


def test_leaves_are_found_in_a_graph():
    from raphson.network.autodiff._vjp_rules import graph_nodes

    leaf = torch.ones(3, requires_grad=True)
    nodes, leaves = graph_nodes((leaf * 2).exp())
    assert leaves == [leaf] or leaves[0] is leaf, changed("autodiff/_linearize.py", "AccumulateGrad.variable")
    assert len(nodes) == 3


def test_calls_inside_attention_are_seen():
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            if func is F.multi_head_attention_forward:
                with self:
                    return _open_attention.open_attention(*args, **(kwargs or {}))
            return func(*args, **(kwargs or {}))

    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(4, 2), torch.randn(5, 3, 4)
    expected = attention(x, x, x)[0]
    with Watch():
        found = attention(x, x, x)[0]
    torch.testing.assert_close(found, expected)
    assert seen.count(F.linear) >= 2, changed(
        "layers/_open_attention.py", "has_torch_function among the globals of F.multi_head_attention_forward"
    )


def test_hooks_on_all_modules():
    file = "_module_parts.py"
    for register in (
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
        nn.modules.module.register_module_full_backward_pre_hook,
    ):
        handle = register(lambda *_: None)
        try:
            with pytest.raises(InputError, match="hook on all modules"):
                _module_parts.refuse_hooks_on_all()
                pytest.fail(changed(file, "the global hooks of nn.modules.module"))
        finally:
            handle.remove()


@pytest.mark.parametrize("told", [True, False])
def test_hooks_on_saved_tensors(told, monkeypatch):
    if not told:  # as in PyTorch 2.7
        monkeypatch.setattr(_tensor_memory, "_TOP_HOOKS", None)
    assert _tensor_memory.saved_tensor_hooks() is None
    with torch.autograd.graph.save_on_cpu():
        assert _tensor_memory.saved_tensor_hooks() is None
    with torch.autograd.graph.saved_tensors_hooks(plain := lambda t: t, plain):
        assert "lambda" in str(_tensor_memory.saved_tensor_hooks()), changed(
            "_tensor_memory.py", "_top_saved_tensors_default_hooks, _raw_saved_result"
        )
        with torch.inference_mode():
            _tensor_memory.saved_tensor_hooks()
    with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.cpu, plain):  # without a module
        assert _tensor_memory.saved_tensor_hooks()
    assert _tensor_memory.saved_tensor_hooks() is None


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
def test_products_of_rows_by_onednn():
    assert hasattr(torch.ops.mkldnn, "_linear_pointwise"), changed("_onednn.py", "mkldnn._linear_pointwise")
    whole, b = torch.randn(40, 70), torch.randn(9, 30)
    # with gaps between rows, turned, spread out; the other one too
    for a in (whole[:, :30], whole.mT[:30].mT, whole[:1, :30].expand(5, -1), whole[:, 10:40].view(8, 5, 30)):
        for other in (b, b.mT.contiguous().mT, torch.cat([b, b], 1)[:, :30], b[:1].expand(4, -1)):
            found = _onednn.rows_product(a, other, other[:, 0])
            expected = F.linear(a.double(), other.double(), other[:, 0].double())
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
            assert not found.requires_grad
            found = _onednn.rows_product(a, other, other[:, 0], "tanh")
            torch.testing.assert_close(found.double(), expected.tanh(), rtol=1e-5, atol=1e-5)
