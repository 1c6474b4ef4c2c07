"""Networks in half precision, whose sums over data need more digits: a copy in single precision stands for them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.data import Batch, tree_map
from raphson.linalg import single
from raphson.network._module_parts import ModuleStructure
from raphson.network._parameters import refuse_other_tensor


class SingleCopy:
    """A module in half precision and its copy in single, which has the values that the module has.

    Args:
        module: The module.
        chosen: Whether the parameters to differentiate are named.

    Attributes:
        module: The copy.

    Raises:
        InputError: The module cannot be copied.
    """

    def __init__(self, module: nn.Module, chosen: bool) -> None:
        self._original, self._structure = module, ModuleStructure(module, chosen)
        self._made = {name: p.detach() for name, p in module.named_parameters()}
        try:
            self.module = copy.deepcopy(module).float()
        except Exception as error:
            raise InputError(
                f"The model ({type(module).__name__}) has parameters in half precision, and cannot be copied to single "
                f"precision, in which sums over data are taken ({type(error).__name__}: {error}). Convert it, by "
                "model.float()."
            ) from error

    def follow(self) -> None:
        """Take the present values of the module, whose parts, types and modes must be those that were copied.

        All values are looked at: what is written through ``p.data`` leaves no other trace.
        """
        now = self._structure.check()
        for name, mine in self._made.items():
            refuse_other_tensor(name, now.get(name), mine)
        with torch.no_grad():
            for mine, theirs in zip(_values(self.module), _values(self._original), strict=True):
                if not bool((mine == theirs).all()):
                    mine.copy_(theirs)


def _values(module: nn.Module) -> list[Tensor]:
    return [*(p.detach() for p in module.parameters()), *module.buffers()]


class SingleBatches:
    """Batches with numbers in half precision in single, of which is known what they were made of.

    Args:
        batches: The batches.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield them."""
        for batch in self._batches:
            yield Batch(tree_map(single, batch.x), single(batch.y), batch.weight, tuple(batch.tensors()))


def in_single_words(error: InputError) -> InputError:
    """Return what a network in half precision says, with the word that it was run in single."""
    return InputError(
        f"{error} The parameters are in half precision, and sums over data are taken with a copy in single: take casts "
        "to half precision out of the model's forward, or give it as model.float()."
    )
