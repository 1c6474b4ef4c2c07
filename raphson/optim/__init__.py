"""Optimizers that use curvature, for networks."""

from raphson.optim._adasecant import Adasecant as Adasecant
from raphson.optim._beta_nll import beta_nll as beta_nll
from raphson.optim._kfac import KFAC as KFAC
from raphson.optim._levenberg_marquardt import LevenbergMarquardt as LevenbergMarquardt
from raphson.optim._newton_cg import NewtonCG as NewtonCG
from raphson.optim._options import CurvatureOptions as CurvatureOptions
from raphson.optim._options import DampingOptions as DampingOptions
from raphson.optim._step_size import FixedStep as FixedStep
from raphson.optim._step_size import QuadraticStep as QuadraticStep
