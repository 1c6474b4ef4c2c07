"""Solvers: a ``Problem`` in, a ``Solution`` out. Newton's method and its globalization, first-order baselines."""

from raphson.solve._factor import inverse_map as inverse_map
from raphson.solve._first_order import gradient_descent as gradient_descent
from raphson.solve._first_order import stochastic_gradient_descent as stochastic_gradient_descent
from raphson.solve._lbfgs import Descent as Descent
from raphson.solve._lbfgs import PairsStepper as PairsStepper
from raphson.solve._lbfgs import descend as descend
from raphson.solve._lbfgs import lbfgs as lbfgs
from raphson.solve._newton import Finish as Finish
from raphson.solve._newton import Stage as Stage
from raphson.solve._newton import newton as newton
from raphson.solve._newton_cg import newton_cg as newton_cg
from raphson.solve._pairs import InversePairs as InversePairs
from raphson.solve._quasi_newton import quasi_newton as quasi_newton
from raphson.solve._solution import Callback as Callback
from raphson.solve._solution import Evaluation as Evaluation
from raphson.solve._solution import History as History
from raphson.solve._solution import Problem as Problem
from raphson.solve._solution import Solution as Solution
from raphson.solve._solution import Status as Status
from raphson.solve._solution import Step as Step
