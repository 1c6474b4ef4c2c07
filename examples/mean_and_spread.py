"""A mean and a spread that both depend on columns: incomes by age and education.

python examples/mean_and_spread.py
"""

from pathlib import Path

import raphson as rp


def main() -> None:
    """Fit mean and log scale together, test whether the spread depends on age, and count definite Hessians."""
    frame = rp.read_table(str(Path(__file__).parent / "anes96.csv"))
    formula = {"mean": "income ~ age + education", "log_scale": "~ age"}
    model = rp.VectorGLM(rp.HeteroscedasticGaussian(), formula=formula).fit(frame)
    print(model.summary())

    constant = rp.VectorGLM(rp.HeteroscedasticGaussian(), formula={**formula, "log_scale": "~ 1"}).fit(frame)
    print(model.likelihood_ratio_test(constant))

    # No single row has a positive definite Hessian in mean and log scale; their sum over the rows has.
    print(model.likelihood.definiteness.sentence)


if __name__ == "__main__":
    main()
