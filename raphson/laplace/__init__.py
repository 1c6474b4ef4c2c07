"""Gaussian posteriors over the parameters of networks, and what they predict.

`raphson.laplace` is this package and, called, the function of the same name: ``rp.laplace(model, likelihood, data)``.
"""

import sys
from types import ModuleType
from typing import Any

from raphson.laplace._fit import laplace as laplace
from raphson.laplace._influence import Influence as Influence
from raphson.laplace._influence import influence as influence
from raphson.laplace._influence import row_numbers as row_numbers
from raphson.laplace._mixture import PredictiveMixture as PredictiveMixture
from raphson.laplace._online import OnlineEvidence as OnlineEvidence
from raphson.laplace._posterior import Posterior as Posterior
from raphson.laplace._predictive import Predictive as Predictive
from raphson.laplace._prior import Prior as Prior


class _CallableModule(ModuleType):
    # Importing the package binds its name in `raphson`; the function of that name must stay reachable there.
    def __call__(self, *args: Any, **kwargs: Any) -> Posterior:
        return laplace(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
