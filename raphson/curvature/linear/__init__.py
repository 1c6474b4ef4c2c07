"""Linear models: closed forms, compiled sums, constraints between outputs, preconditioning."""
