"""Formulas and shapes for people: what the derivatives of a likelihood are, and how large they get.

`raphson.explain` is this package and, called, the function of the same name: ``rp.explain(likelihood)``.
"""

import sys
from types import ModuleType
from typing import Any

from raphson.explain._explain import Explanation as Explanation
from raphson.explain._explain import explain as explain
from raphson.explain._explain import explain_name as explain_name
from raphson.explain._shapes import Shapes as Shapes
from raphson.explain._shapes import shapes as shapes


class _CallableModule(ModuleType):
    # Importing the package binds its name in `raphson`; the function of that name must stay reachable there.
    def __call__(self, *args: Any, **kwargs: Any) -> Explanation:
        return explain(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
