"""A table in which the classes are separated: what maximum likelihood says, and finite estimates by Jeffreys' penalty.

python examples/separation.py
"""

import warnings
from pathlib import Path

import raphson as rp


def main() -> None:
    """Fit the doses and cures, say why there is no answer, and give a finite one with profile intervals."""
    frame = rp.read_table(str(Path(__file__).parent / "dose.csv"))
    doses, cured = frame[["dose"]], frame["cured"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rp.SeparationWarning)  # the refusal below says it
        plain = rp.MultinomialLogisticRegression().fit(doses, cured)
    print("Maximum likelihood:", plain.solution_.status.sentence)
    try:
        plain.standard_errors()
    except rp.NotEstimableError as error:
        print(error)

    firth = rp.MultinomialLogisticRegression(penalty="jeffreys").fit(doses, cured)
    print()
    print(firth.summary(method="profile"))


if __name__ == "__main__":
    main()
