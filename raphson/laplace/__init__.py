"""Gaussian posteriors over the parameters of networks, and what they predict.

`raphson.laplace` is this package and, called, the function of the same name: ``rp.laplace(model, likelihood, data)``.
"""

from raphson._callable import make_callable
from raphson.laplace._fit import laplace as laplace
from raphson.laplace._influence import Influence as Influence
from raphson.laplace._influence import influence as influence
from raphson.laplace._influence import row_numbers as row_numbers
from raphson.laplace._left_out import left_out as left_out
from raphson.laplace._mixture import PredictiveMixture as PredictiveMixture
from raphson.laplace._online import OnlineEvidence as OnlineEvidence
from raphson.laplace._posterior import Posterior as Posterior
from raphson.laplace._predictive import Predictive as Predictive
from raphson.laplace._predictive import inside as inside
from raphson.laplace._prior import Prior as Prior

make_callable(__name__, laplace)
