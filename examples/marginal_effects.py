"""Slopes, comparisons and predictions by the package marginaleffects, with standard errors, of a raphson fit.

pip install marginaleffects && python examples/marginal_effects.py
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np

import raphson as rp


def adapted(model: rp.VectorGLM, frame: Any, formula: str) -> Any:
    """Return a fitted model of one output as marginaleffects takes models: coefficients, covariance, predictions.

    Args:
        model: The fit, of ``formula``.
        frame: Its table, a pandas frame.
        formula: Its formula.
    """
    import polars as pl
    from marginaleffects.classes import ModelAbstract, ModelVault

    class Adapter(ModelAbstract):
        def get_vcov(self, vcov: Any = True) -> Any:
            kind = {True: None, "HC0": "sandwich"}.get(vcov, vcov)
            return None if vcov is False else self.model.covariance(kind).to_numpy(dtype=float)

        def get_exog(self, newdata: Any) -> Any:
            return newdata  # raphson makes the columns itself

        def get_predict(self, params: Any, newdata: Any) -> Any:
            other = copy.copy(self.model)
            other.intercept_, other.coef_ = np.asarray(params)[:1], np.asarray(params)[None, 1:]
            mean = np.asarray(other.predict(newdata.to_pandas()), dtype=float)
            return pl.DataFrame({"rowid": np.arange(len(mean), dtype=np.int32), "estimate": mean})

    return Adapter(
        model,
        ModelVault(
            coef=np.r_[model.intercept_, model.coef_[0]],
            coefnames=np.array([str(name) for name in model.standard_errors().index]),
            formula=formula,
            modeldata=pl.from_pandas(frame),
            package="raphson",
        ),
    )


def main() -> None:
    """Fit a Poisson model, and get average slopes by marginaleffects and by raphson itself."""
    try:
        from marginaleffects import avg_slopes
    except ModuleNotFoundError:
        print("This example needs marginaleffects: pip install marginaleffects")
        return
    frame = rp.read_table(Path(__file__).parent / "anes96.csv")
    formula = "income ~ age + education"
    model = rp.VectorGLM(rp.Poisson(), formula=formula).fit(frame)
    found = avg_slopes(adapted(model, frame, formula), variables=["age", "education"])
    print(found.select("term", "estimate", "std_error") if hasattr(found, "select") else found)
    print(model.margins().to_frame())


if __name__ == "__main__":
    main()
