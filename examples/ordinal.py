"""Ordered levels: how liberal or conservative respondents place themselves, by age, education and income.

python examples/ordinal.py
"""

from pathlib import Path

import raphson as rp


def main() -> None:
    """Fit proportional odds, test their assumption against slopes of each cut's own, and predict."""
    frame = rp.read_table(str(Path(__file__).parent / "anes96.csv"))
    columns, level = frame[["age", "education", "income"]], frame["left_right"].astype(int)

    parallel = rp.VectorGLM(rp.Ordinal(7)).fit(columns, level)
    print(parallel.summary())

    free = rp.VectorGLM(rp.Ordinal(7), constraints="own").fit(columns, level)
    print(free.likelihood_ratio_test(parallel))

    print("Probabilities of the seven levels for the first respondent:")
    print(parallel.predict(columns.head(1)).round(3))


if __name__ == "__main__":
    main()
