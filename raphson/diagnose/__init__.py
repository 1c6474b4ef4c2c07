"""Judging an objective by its Hessian (convexity with a guarantee, spectrum, step size) and a fit by its residuals.

`raphson.diagnose` is this package and, called, the function of the same name: ``rp.diagnose(operator)``.
"""

from raphson._callable import make_callable
from raphson.diagnose._diagnose import diagnose as diagnose
from raphson.diagnose._diagnosis import Diagnosis as Diagnosis
from raphson.diagnose._diagnosis import Direction as Direction
from raphson.diagnose._error_bound import ErrorBound as ErrorBound
from raphson.diagnose._error_bound import Evidence as Evidence
from raphson.diagnose._error_bound import bound_error as bound_error
from raphson.diagnose._everywhere import Everywhere as Everywhere
from raphson.diagnose._everywhere import Subject as Subject
from raphson.diagnose._everywhere import everywhere as everywhere
from raphson.diagnose._frequencies import are_counts as are_counts
from raphson.diagnose._frequencies import count_frequencies as count_frequencies
from raphson.diagnose._inertia import Inertia as Inertia
from raphson.diagnose._residuals import Randomness as Randomness
from raphson.diagnose._residuals import ResidualKind as ResidualKind
from raphson.diagnose._residuals import residuals as residuals
from raphson.diagnose._simulation import SimulationTest as SimulationTest
from raphson.diagnose._simulation import calibration_test as calibration_test
from raphson.diagnose._simulation import dispersion_test as dispersion_test
from raphson.diagnose._simulation import zero_inflation_test as zero_inflation_test
from raphson.diagnose._step_size import LearningRate as LearningRate
from raphson.diagnose._step_size import suggest_learning_rate as suggest_learning_rate

make_callable(__name__, diagnose)
