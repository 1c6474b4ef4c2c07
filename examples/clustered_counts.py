"""Counts of patients in clinics: standard errors that know that patients of one clinic are alike.

python examples/clustered_counts.py
"""

import numpy as np
import pandas as pd

import raphson as rp


def clinics(seed: int = 0, n_clinics: int = 60, patients: int = 12) -> pd.DataFrame:
    """Return made visits of patients: treatment is by clinic, and clinics differ in more than that.

    Args:
        seed: Seed of the random numbers.
        n_clinics: Number of clinics.
        patients: Patients in each.

    Returns:
        Columns ``visits``, ``treated``, ``age`` (in decades from the mean), ``years`` (observed), ``clinic``.
    """
    generator = np.random.default_rng(seed)
    n = n_clinics * patients
    clinic = np.repeat(np.arange(n_clinics), patients)
    treated = (clinic % 2).astype(float)
    age = generator.normal(size=n)
    years = generator.uniform(0.5, 3, size=n)
    effect = generator.normal(scale=0.4, size=n_clinics)[clinic]
    visits = generator.poisson(years * np.exp(0.4 - 0.3 * treated + 0.2 * age + effect))
    return pd.DataFrame({"visits": visits, "treated": treated, "age": age, "years": years, "clinic": clinic})


def main() -> None:
    """Fit the counts, and compare standard errors of three kinds."""
    frame = clinics()
    model = rp.VectorGLM(rp.Poisson(), formula="visits ~ treated + age + offset(log(years))").fit(frame)
    clinic = frame["clinic"]
    table = pd.DataFrame({
        "observed information": model.standard_errors(),
        "robust": model.standard_errors("sandwich"),
        "clustered": model.standard_errors("sandwich", groups=clinic),
    })
    print("Standard errors")
    print(table.round(4))
    print()
    print(model.wald_test(["treated"], kind="sandwich", groups=clinic))
    print(model.margins(kind="sandwich", groups=clinic))


if __name__ == "__main__":
    main()
