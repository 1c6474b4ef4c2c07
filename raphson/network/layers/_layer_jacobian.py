r"""The Jacobian of a network at some examples, stored layer by layer: products with it need no pass over the network.

A layer with inputs :math:`a_{np}` at example n and position p, and gradients :math:`g_{ncp}` of the example's output c
in its own outputs, has the block

.. math:: J_{nc} = \sum_p g_{ncp}\, a_{np}^\top, \qquad (J V)_{nc} = \sum_p g_{ncp}^\top V a_{np}, \qquad
    J^\top u = \sum_{np} \Big(\sum_c u_{nc}\, g_{ncp}\Big) a_{np}^\top .

A linear layer with few positions stores the factors :math:`a` and :math:`g`: a product is one matrix product of the
size of its forward pass. Everything else stores the block itself, which is the smaller the more positions are summed in
it: a product reads it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raphson.network._parameters import ParameterSpace
from raphson.network.layers._feed_forward_products import vectors_at_once
from raphson.network.layers._layer_calls import LayerCall, Linear
from raphson.network.layers._parameter_view import ParameterView, PositionLayout


@dataclass(frozen=True, eq=False)
class _Factors:
    """What is stored of a linear layer.

    Attributes:
        call: The layer, without its input.
        inputs: ``(N, p, in)``.
        gradients: ``(N, E, p out)``.
    """

    call: Linear
    inputs: Tensor
    gradients: Tensor


class LayerJacobian:
    """Memory for the Jacobian of ``N`` examples (or positions that are independent) with ``E`` outputs each.

    Args:
        space: The parameters.
        calls: The layers, as a part of the examples passed through them.
        layouts: Which positions of each belong to which example of that part.
        examples: ``N``.
        outputs: ``E``.
        unrecognized: Parameters outside recognized layers: their blocks are filled by themselves.

    Attributes:
        width: Number of vectors that should go together.
    """

    def __init__(
        self,
        space: ParameterSpace,
        calls: Sequence[LayerCall],
        layouts: Sequence[PositionLayout],
        examples: int,
        outputs: int,
        unrecognized: frozenset[str] = frozenset(),
    ) -> None:
        self._space, self._shape, self._unrecognized = space, (examples, outputs), unrecognized
        self._names = [call.name for call in calls]
        self._lengths = [layout.length for layout in layouts]
        self._factored = {
            number: call.without_input()
            for number, (call, p) in enumerate(zip(calls, self._lengths, strict=True))
            if isinstance(call, Linear)
            and factors_are_faster(call, p, outputs, space)
            and not any(_has(call, name) for name in unrecognized)
        }
        others = [call for number, call in enumerate(calls) if number not in self._factored]
        self._formed = [
            name for name in space.names if name in unrecognized or any(_has(call, name) for call in others)
        ]
        widths = [self._lengths[number] * call.weight_shape[1] for number, call in self._factored.items()]
        self.width = vectors_at_once(examples * max([outputs, *widths]), space.device)
        self._factors: dict[int, _Factors] = {}
        self._blocks: dict[str, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Size of what is stored, in bytes."""
        examples, outputs = self._shape
        entries = examples * outputs * sum(self._space.tensors[name].numel() for name in self._formed)
        for number, call in self._factored.items():
            _, out, inputs = call.weight_shape
            entries += examples * self._lengths[number] * (outputs * out + inputs)
        return entries * self._space.dtype.itemsize

    def shaped(self, u: Tensor) -> Tensor:
        """Return vectors of outputs ``(k, N, ..., C)`` as ``(k, N, E)``."""
        return u.reshape(len(u), *self._shape)

    def allocate(self) -> None:
        """Make the memory, which is zero until it is filled."""
        examples, outputs = self._shape
        like = self._space.empty()
        self._blocks = {
            name: like.new_zeros(examples, outputs, self._space.tensors[name].numel()) for name in self._formed
        }
        for number, call in self._factored.items():
            (_, out, inputs), p = call.weight_shape, self._lengths[number]
            made = like.new_empty(examples, p, inputs), like.new_empty(examples, outputs, p * out)
            self._factors[number] = _Factors(call, *made)

    def suits(self, calls: Sequence[LayerCall], layouts: Sequence[PositionLayout]) -> bool:
        """Whether another part of the examples passed through the same layers."""
        names, lengths = [call.name for call in calls], [layout.length for layout in layouts]
        return names == self._names and lengths == self._lengths

    def fill(
        self, number: int, call: LayerCall, layout: PositionLayout, g: Tensor, examples: slice, outputs: slice
    ) -> None:
        """Store what layer ``number`` adds for some examples and outputs.

        They passed through it as ``call``, with ``layout``; ``g`` are gradients of these outputs, ``(e, *shape)``.
        """
        if number in self._factored:
            assert isinstance(call, Linear)
            stored, rows = self._factors[number], layout.by_example(call.rows(g).movedim(0, 1))
            stored.gradients[examples, outputs] = rows.transpose(1, 2).flatten(2)
            if outputs.start == 0:
                stored.inputs[examples] = layout.by_example(call.input().reshape(-1, call.x.shape[-1]))
            return
        for view, values in call.example_gradients(g, layout):
            if view.name in self._unrecognized:
                continue
            view.add(self._blocks[view.name][examples, outputs], self._space.tensors[view.name], values.transpose(0, 1))

    def fill_unrecognized(self, name: str, gradients: Tensor, examples: slice, outputs: slice) -> None:
        """Store gradients ``(e, N, numel)`` of some outputs of some examples in an unrecognized parameter."""
        self._blocks[name][examples, outputs] = gradients.transpose(0, 1)

    @torch.no_grad()
    def jvp(self, rows: Tensor) -> Tensor:
        """Return ``J v``, ``(k, N, E)``, for ``v`` in rows ``(k, P)``."""
        rows, k = rows.contiguous(), len(rows)
        parts = dict(zip(self._space.names, rows.split(self._space.sizes, 1), strict=True))  # type: ignore[no-untyped-call]
        found: list[Tensor] = [
            (parts[name] @ block.flatten(0, 1).mT).view(k, *self._shape) for name, block in self._blocks.items()
        ]
        for stored in self._factors.values():
            weight, bias = stored.call.weight, stored.call.bias
            assert weight is not None
            a, v = stored.inputs.flatten(0, 1).expand(k, -1, -1), _seen(parts[weight.name], weight).mT
            z = a @ v if bias is None else torch.baddbmm(_seen(parts[bias.name], bias).unsqueeze(1), a, v)
            z = z.view(k, self._shape[0], -1).permute(1, 2, 0)
            found.append((stored.gradients @ z).permute(2, 0, 1))
        total = found.pop()
        for more in found:
            total += more
        return total

    @torch.no_grad()
    def vjp(self, u: Tensor) -> Tensor:
        """Return ``J^T u``, ``(k, P)``, for ``u`` of shape ``(k, N, E)``."""
        k = len(u)
        found = {name: u.flatten(1) @ block.flatten(0, 1) for name, block in self._blocks.items()}
        for stored in self._factors.values():
            weight, bias = stored.call.weight, stored.call.bias
            assert weight is not None
            examples, p, inputs = stored.inputs.shape
            g = (u.transpose(0, 1) @ stored.gradients).view(examples, k, p, -1).transpose(1, 2)
            rows = g.reshape(examples * p, -1)
            self._add(found, weight, (rows.mT @ stored.inputs.view(-1, inputs)).view(k, -1, inputs))
            if bias is not None:
                self._add(found, bias, rows.sum(0).view(k, -1))
        missing = (name for name in self._space.names if name not in found)
        found |= {name: u.new_zeros(k, self._space.tensors[name].numel()) for name in missing}
        return torch.cat([found[name] for name in self._space.names], 1)

    def _add(self, found: dict[str, Tensor], view: ParameterView, values: Tensor) -> None:
        """Add products with a view of a parameter to those with the parameter."""
        parameter = self._space.tensors[view.name]
        if view.name not in found and view.is_whole(parameter):
            found[view.name] = values.flatten(1)
            return
        whole = found.setdefault(view.name, values.new_zeros(len(values), parameter.numel()))
        _seen(whole, view).add_(values)


def _seen(rows: Tensor, view: ParameterView) -> Tensor:
    """Return rows ``(k, numel)`` that belong to a parameter as its view sees it, ``(k, *size)``."""
    return rows.as_strided((len(rows), *view.size), (rows.stride(0), *view.stride), rows.storage_offset() + view.offset)


def _has(call: LayerCall, name: str) -> bool:
    return any(view is not None and view.name == name for view in (call.weight, call.bias))


def factors_are_faster(call: Linear, p: int, outputs: int, space: ParameterSpace) -> bool:
    """Whether products with the factors of a layer at ``p`` positions an example are faster than with its block."""
    # a block is read from memory, a few entries each nanosecond; factors are multiplied, four times as fast for eight
    # vectors (measured)
    views = [view for view in (call.weight, call.bias) if view is not None]
    if call.weight is None or not all(space.tensors[view.name].is_contiguous() for view in views):
        return False
    inputs = call.weight_shape[2]
    return outputs * inputs >= p * (inputs / 4 + outputs)
