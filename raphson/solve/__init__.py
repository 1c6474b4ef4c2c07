"""Solvers: Newton's method and its globalization, first-order baselines. All return a ``Solution``."""

from raphson.solve._first_order import gradient_descent as gradient_descent
from raphson.solve._first_order import stochastic_gradient_descent as stochastic_gradient_descent
from raphson.solve._newton import ARMIJO as ARMIJO
from raphson.solve._newton import ROUNDING as ROUNDING
from raphson.solve._newton import Direction as Direction
from raphson.solve._newton import Preconditioner as Preconditioner
from raphson.solve._newton import newton as newton
from raphson.solve._newton import newton_direction as newton_direction
from raphson.solve._newton_cg import newton_cg as newton_cg
from raphson.solve._problem import Callback as Callback
from raphson.solve._problem import Evaluation as Evaluation
from raphson.solve._problem import Problem as Problem
from raphson.solve._quasi_newton import EXTENSIONS as EXTENSIONS
from raphson.solve._quasi_newton import LONGEST as LONGEST
from raphson.solve._quasi_newton import STEEP as STEEP
from raphson.solve._quasi_newton import cholesky_inverse as cholesky_inverse
from raphson.solve._quasi_newton import quasi_newton as quasi_newton
from raphson.solve._solution import Solution as Solution
from raphson.solve._solution import Status as Status
from raphson.solve._solution import Step as Step
