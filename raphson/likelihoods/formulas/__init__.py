"""Formulas of likelihoods in SymPy, which importing this loads: what ``Likelihood.definition`` is made of."""

from raphson.likelihoods.formulas._algebra import Expr as Expr
from raphson.likelihoods.formulas._algebra import Matrix as Matrix
from raphson.likelihoods.formulas._algebra import Symbol as Symbol
from raphson.likelihoods.formulas._algebra import factored as factored
from raphson.likelihoods.formulas._algebra import grouped as grouped
from raphson.likelihoods.formulas._algebra import mean_of as mean_of
from raphson.likelihoods.formulas._algebra import polish as polish
from raphson.likelihoods.formulas._algebra import positive as positive
from raphson.likelihoods.formulas._algebra import real as real
from raphson.likelihoods.formulas._algebra import sympy as sympy
from raphson.likelihoods.formulas._algebra import tidy as tidy
from raphson.likelihoods.formulas._definition import GLM_BOOK as GLM_BOOK
from raphson.likelihoods.formulas._definition import ONLY_CONVEX as ONLY_CONVEX
from raphson.likelihoods.formulas._definition import STRICTLY_CONVEX as STRICTLY_CONVEX
from raphson.likelihoods.formulas._definition import Abbreviation as Abbreviation
from raphson.likelihoods.formulas._definition import Convexity as Convexity
from raphson.likelihoods.formulas._definition import Definition as Definition
from raphson.likelihoods.formulas._definition import exponential as exponential
from raphson.likelihoods.formulas._definition import first_number as first_number
from raphson.likelihoods.formulas._definition import logistic as logistic
from raphson.likelihoods.formulas._definition import mean_by_moments as mean_by_moments
from raphson.likelihoods.formulas._definition import one_number as one_number
from raphson.likelihoods.formulas._definition import softmax as softmax
from raphson.likelihoods.formulas._links import as_function as as_function
from raphson.likelihoods.formulas._links import output_symbol as output_symbol
