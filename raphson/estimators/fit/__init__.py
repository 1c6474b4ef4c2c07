"""Fitting a linear model: the solver, the fit, the fitted model."""
