"""Data that leave coefficients undetermined: collinearity and separation."""
