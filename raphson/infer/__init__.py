"""How sure an estimate is: covariances, tests, intervals and marginal effects, from operators and tensors."""

from ._comparison import LikelihoodRatioResult as LikelihoodRatioResult
from ._comparison import PseudoR2 as PseudoR2
from ._comparison import aic as aic
from ._comparison import bic as bic
from ._comparison import likelihood_ratio_test as likelihood_ratio_test
from ._comparison import pseudo_r2 as pseudo_r2
from ._covariance import cluster_sums as cluster_sums
from ._covariance import inverse_information as inverse_information
from ._covariance import sandwich as sandwich
from ._covariance import small_sample_factor as small_sample_factor
from ._estimates import Estimates as Estimates
from ._estimates import critical_value as critical_value
from ._margins import MarginsResult as MarginsResult
from ._margins import average_marginal_effects as average_marginal_effects
from ._margins import binary_columns as binary_columns
from ._margins import margins as margins
from ._prediction import MeanInterval as MeanInterval
from ._prediction import mean_interval as mean_interval
from ._tests import WaldResult as WaldResult
from ._tests import wald_test as wald_test
