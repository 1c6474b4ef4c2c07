r"""The Jacobian of a network's outputs in its parameters or inputs, and the second derivatives of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.data import Inputs, take, tree_map
from raphson.linalg import ImplicitRectangular, check_dense_size
from raphson.network._checks import Traits, probe
from raphson.network._module import Model
from raphson.network._module_parts import refuse_training_mode
from raphson.network._parameters import ParameterSpace
from raphson.network._tensor_memory import Written
from raphson.network.autodiff._adjoint import check_adjoint
from raphson.network.autodiff._linearize import Linearization
from raphson.network.autodiff._per_example import (
    example_input_jacobian,
    example_jacobian,
    example_second_derivatives,
    one_example,
    parted,
)
from raphson.network.curvature._products import refuse_written
from raphson.network.curvature.factors._output_curvature import slice_rows

Network = nn.Module | Callable[..., Tensor]

_CHUNK = 2**24


class Jacobian:
    r"""The Jacobian :math:`J = \partial f / \partial \theta` of the outputs for some inputs, known by its products.

    It has the axes of the outputs ``(N, ..., C)`` and then one of parameters ``P``; ``mv`` contracts the last, ``rmv``
    all others. The model is run once, when this is made; a product with :math:`J` or :math:`J^\top` costs two thirds of
    a gradient each, and less with a large first layer.

    Args:
        model: The model as ``f(params, x)``.
        x: Inputs.
        n: Number of examples.
        traits: What is known about the model.

    Attributes:
        outputs: ``f``, ``(N, ..., C)``.

    Examples:
        >>> import raphson as rp
        >>> J = rp.jacobian(torch.nn.Linear(2, 1), torch.tensor([[3.0, 4.0]]))
        >>> J.shape, J.by_parameter()["weight"].shape
        (torch.Size([1, 1, 3]), torch.Size([1, 1, 1, 2]))
    """

    def __init__(self, model: Model, x: Inputs, n: int, traits: Traits) -> None:
        self._model, self._x, self._n, self._traits = model, x, n, traits
        check_adjoint(model, take(x, slice(0, n, max(1, n - 1)), n), traits)
        self._lin = Linearization(model, x, traits)
        self._versions = model.versions()
        inputs: list[Tensor] = []
        tree_map(inputs.append, x)
        self._inputs = Written(inputs)
        self.outputs = self._lin.outputs

    def __repr__(self) -> str:
        return f"<Jacobian {' x '.join(map(str, self.shape))}, {self.dtype}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        """Refuse to pickle: the copy would describe a copy of the model."""
        raise TypeError("A Jacobian is a function of its model and cannot be pickled. Pickle J.to_dense() instead.")

    @property
    def space(self) -> ParameterSpace:
        """The parameters, whose ``labels()`` name the last axis."""
        return self._model.space

    @property
    def shape(self) -> torch.Size:
        """Shape ``(N, ..., C, P)``."""
        return torch.Size((*self.outputs.shape, self.space.numel))

    @property
    def dtype(self) -> torch.dtype:
        """Element type."""
        return self.outputs.dtype

    @property
    def device(self) -> torch.device:
        """Device."""
        return self.outputs.device

    def mv(self, v: Tensor) -> Tensor:
        r"""Return :math:`J v`, ``(N, ..., C)``, for ``v`` of shape ``(P,)``."""
        self._check_vector(v)
        self.space.check_length(v.shape[-1])
        self._check_unchanged()
        return self._lin.jvp(v)

    def rmv(self, u: Tensor) -> Tensor:
        r"""Return :math:`J^\top u`, ``(P,)``, for ``u`` of shape ``(N, ..., C)``."""
        self._check_vector(u)
        self._check_cotangent(u.shape)
        return self._transposed(u.unsqueeze(0)).squeeze(0)

    def mm(self, v: Tensor) -> Tensor:
        r"""Return :math:`J V`, ``(N, ..., C, k)``, for ``V`` of shape ``(P, k)``."""
        self._check_vector(v)
        self.space.check_length(v.shape[0])
        self._check_unchanged()
        return self._lin.jvps(v.mT).movedim(0, -1)

    def rmm(self, u: Tensor) -> Tensor:
        r"""Return :math:`J^\top U`, ``(P, k)``, for ``U`` of shape ``(N, ..., C, k)``."""
        self._check_vector(u)
        self._check_cotangent(u.shape[:-1])
        return self._transposed(u.movedim(-1, 0)).mT

    def to_dense(self) -> Tensor:
        """Return the ``(N, ..., C, P)`` tensor; ``TooLargeError`` says how large it would be."""
        check_dense_size(self.shape, self.dtype, "its products mv, rmv, mm and rmm, or fewer inputs or params")
        self._check_unchanged()
        width = max(1, _CHUNK // (self.outputs[0].numel() * self.space.numel))
        return torch.cat([
            example_jacobian(self._model, take(self._x, rows, self._n), rows.stop - rows.start, self._traits)
            for rows in slice_rows(self._n, width)
        ])

    def by_parameter(self) -> dict[str, Tensor]:
        """Return the dense Jacobian in every parameter, ``(N, ..., C, *shape)``, by name."""
        parts = self.space.split_rows(self.to_dense())
        return dict(zip(self.space.names, parts, strict=True))

    def matrix(self) -> ImplicitRectangular:
        """Return it as one rectangular operator ``(N ... C, P)``, outputs row-major."""
        shape = self.outputs.shape
        return ImplicitRectangular(
            lambda v: self.mv(v).reshape(-1),
            lambda u: self.rmv(u.reshape(shape)),
            (shape.numel(), self.space.numel),
            self.dtype,
            self.device,
        )

    def _transposed(self, u: Tensor) -> Tensor:
        self._check_unchanged()
        return self._lin.vjps(u)

    def _check_unchanged(self) -> None:
        self._model.check_unchanged(self._versions)
        refuse_written(self._inputs, "the inputs")

    def _check_vector(self, v: Any) -> None:
        if not isinstance(v, Tensor) or v.ndim == 0 or v.dtype != self.dtype or v.device != self.device:
            what = f"a tensor of {v.dtype} on {v.device}" if isinstance(v, Tensor) else f"a {type(v).__name__}"
            raise InputError(
                f"The Jacobian multiplies tensors of {self.dtype} on {self.device} with an axis of entries, and got "
                f"{what}: convert it by torch.as_tensor(v).to(J.device, J.dtype)."
            )

    def _check_cotangent(self, shape: torch.Size) -> None:
        if shape != self.outputs.shape:
            raise InputError(
                f"The vector of outputs has shape {tuple(shape)}, but the outputs have {tuple(self.outputs.shape)}."
            )


def jacobian(model: Network, x: Inputs, params: Mapping[str, Tensor] | str | Iterable[str] | None = None) -> Jacobian:
    r"""Return the Jacobian of a model's outputs in its parameters, :math:`J_{ncp} = \partial f_{nc}/\partial\theta_p`.

    Args:
        model: A module in evaluation mode, or a function ``f(params, *x)``; outputs ``(N, ..., C)``.
        x: Inputs: a tensor, a tuple of positional or a dictionary of named arguments, examples first.
        params: Names or prefixes of the parameters; None for those with ``requires_grad=True``. For a function, the
            dictionary of its parameters.

    Returns:
        The Jacobian, with products, dense and per-parameter forms; ``InputError`` if the model is in training mode or
        mixes examples.

    Examples:
        A linear model's outputs are its weights times the input.

        >>> import torch
        >>> import raphson as rp
        >>> J = rp.jacobian(torch.nn.Linear(2, 1), torch.tensor([[3.0, 4.0]]))
        >>> J.to_dense()
        tensor([[[3., 4., 1.]]])
        >>> J.mv(torch.tensor([1.0, 0.0, 1.0])), J.rmv(torch.tensor([[2.0]]))
        (tensor([[4.]]), tensor([6., 8., 2.]))
    """
    made, x, n, traits, _ = _prepared(model, x, params)
    return Jacobian(made, x, n, traits)


def input_jacobian(
    model: Network, x: Inputs, params: Mapping[str, Tensor] | None = None
) -> Tensor | dict[str, Tensor] | tuple[Tensor, ...]:
    r"""Return the Jacobian of each example's outputs in its own input, :math:`\partial f_{nc} / \partial x_n`.

    Args:
        model: A module in evaluation mode, or a function ``f(params, *x)``; outputs ``(N, ..., C)``.
        x: Inputs, of which those of a floating-point type are differentiated.
        params: For a function: the dictionary of its parameters.

    Returns:
        ``(N, ..., C, *input)`` for inputs ``(N, *input)``; for several inputs, a tuple of those of a floating-point
        type, or a dictionary of them by name.

    Raises:
        InputError: No input is of a floating-point type, or the model does not fit.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> model = torch.nn.Linear(2, 1)
        >>> _ = torch.nn.init.constant_(model.weight, 5.0)
        >>> rp.input_jacobian(model, torch.ones(1, 2))
        tensor([[[5., 5.]]])
    """
    made, x, n, traits, shape = _prepared(model, x, params)
    tensors, _ = one_example(made, x, n)
    places = [i for i, tensor in enumerate(tensors) if tensor.is_floating_point()]
    if not places:
        raise InputError("No input is of a floating-point type: there is nothing to differentiate in.")
    found = example_input_jacobian(made, x, n, traits, places, shape)
    if isinstance(x, Tensor):
        only: Tensor = found[0]
        return only
    if isinstance(x, Mapping):
        names = [name for name, value in x.items() for _ in parted(value, n)[0]]
        return {names[i]: part for i, part in zip(places, found, strict=True)}
    return tuple(found)


def second_derivatives(
    model: Network, x: Inputs, params: Mapping[str, Tensor] | str | Iterable[str] | None = None
) -> Tensor:
    r"""Return the second derivatives of a model's outputs in its parameters.

    That is :math:`\partial^2 f_{nc} / \partial\theta_p \partial\theta_q`: the Hessian of a vector function is an array
    of order three for each example, and :math:`\sum_c g_{nc} \nabla^2 f_c` the part of a loss's Hessian that
    Gauss-Newton leaves out.

    Args:
        model: A module in evaluation mode, or a function ``f(params, *x)``; outputs ``(N, ..., C)``.
        x: Inputs, examples first.
        params: As for ``jacobian``.

    Returns:
        ``(N, ..., C, P, P)``; ``TooLargeError`` says how large it would be, ``InputError`` which function in the model
        cannot be differentiated twice.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> f = lambda params, x: x * params["a"] ** 3
        >>> rp.second_derivatives(f, torch.ones(1, 1), {"a": torch.tensor([2.0])})
        tensor([[[[12.]]]])
    """
    made, x, n, traits, shape = _prepared(model, x, params)
    whole = (n, *shape, made.space.numel, made.space.numel)
    check_dense_size(whole, made.space.dtype, "fewer inputs or params, or rp.hessian")
    check_adjoint(made, take(x, slice(0, n, max(1, n - 1)), n), traits, second=True)
    return example_second_derivatives(made, x, n, traits, shape)


def _prepared(
    model: Network, x: Inputs, params: Mapping[str, Tensor] | str | Iterable[str] | None
) -> tuple[Model, Inputs, int, Traits, torch.Size]:
    """Return the checked model, inputs on its device, their number, what an evaluation shows and an output's shape."""
    made = Model(model, params)
    refuse_training_mode(made.module)
    found: list[Tensor] = []
    tree_map(found.append, x)
    if not found or found[0].ndim == 0:
        raise InputError("The inputs hold no tensor with an axis of examples: give a tensor (N, ...).")
    n = found[0].shape[0]
    if n == 0:
        raise InputError("The inputs hold no example: give at least one.")
    x = tree_map(lambda tensor: tensor.to(made.space.device), x)
    f, traits = probe(made, x, n)
    return made, x, n, traits, f.shape[1:]
