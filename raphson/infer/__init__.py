"""How sure an estimate is: covariances, tests, intervals and marginal effects, from operators and tensors."""

from raphson.infer._averages import MarginsResult as MarginsResult
from raphson.infer._averages import MeanTable as MeanTable
from raphson.infer._averages import average_mean as average_mean
from raphson.infer._averages import average_slope as average_slope
from raphson.infer._averages import binary_columns as binary_columns
from raphson.infer._averages import margins as margins
from raphson.infer._averages import pairwise as pairwise
from raphson.infer._comparison import LikelihoodRatioResult as LikelihoodRatioResult
from raphson.infer._comparison import PseudoR2 as PseudoR2
from raphson.infer._comparison import aic as aic
from raphson.infer._comparison import bic as bic
from raphson.infer._comparison import likelihood_ratio_test as likelihood_ratio_test
from raphson.infer._comparison import pseudo_r2 as pseudo_r2
from raphson.infer._covariance import covariance_root as covariance_root
from raphson.infer._covariance import inverse_information as inverse_information
from raphson.infer._covariance import of_root as of_root
from raphson.infer._covariance import sandwich as sandwich
from raphson.infer._covariance import small_sample_factor as small_sample_factor
from raphson.infer._estimates import Estimates as Estimates
from raphson.infer._estimates import critical_value as critical_value
from raphson.infer._estimates import label_name as label_name
from raphson.infer._prediction import MeanInterval as MeanInterval
from raphson.infer._prediction import mean_interval as mean_interval
from raphson.infer._tests import WaldResult as WaldResult
from raphson.infer._tests import wald_test as wald_test
