"""Formulas and shapes for people: what the derivatives of a likelihood are, and how large they get.

`raphson.explain` is this package and, called, the function of the same name: ``rp.explain(likelihood)``.
"""

from raphson._callable import make_callable
from raphson.explain._explain import Explanation as Explanation
from raphson.explain._explain import explain as explain
from raphson.explain._explain import explain_name as explain_name
from raphson.explain._shapes import Shapes as Shapes
from raphson.explain._shapes import shapes as shapes

make_callable(__name__, explain)
