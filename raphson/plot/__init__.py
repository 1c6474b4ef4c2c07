"""Figures: each function draws on the axes given, or on new ones, and returns them.

They need matplotlib, ``pip install 'raphson[plot]'``, and compute nothing of their own: what they show comes from
public methods of what they are given.
"""

from raphson.plot._classes import calibration as calibration
from raphson.plot._classes import confusion as confusion
from raphson.plot._fits import coefficients as coefficients
from raphson.plot._fits import convergence as convergence
from raphson.plot._maps import landscape as landscape
from raphson.plot._maps import local_linear as local_linear
from raphson.plot._matrices import hessian as hessian
from raphson.plot._matrices import spectrum as spectrum
from raphson.plot._networks import coverage as coverage
from raphson.plot._networks import training as training
from raphson.plot._predictions import bands as bands
from raphson.plot._predictions import influence as influence
from raphson.plot._residuals import residuals as residuals
from raphson.plot._residuals import rootogram as rootogram
