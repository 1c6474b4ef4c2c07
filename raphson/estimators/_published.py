"""A fitted model as tables for publication see it: the plug-in format of ``maketables`` (LaTeX, Word, Typst, HTML)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sklearn.utils.validation import check_is_fitted

from raphson.estimators._margins import MarginsMixin

if TYPE_CHECKING:
    import pandas as pd


class PublishedTableMixin(MarginsMixin):
    """Attributes under the names that ``maketables.ETable`` asks for; it is not imported."""

    @property
    def __maketables_coef_table__(self) -> pd.DataFrame:
        """The coefficients of ``summary()``: estimate, standard error, statistic, p-value and 95 percent interval."""
        check_is_fitted(self)
        frame = self.summary().to_frame()
        outputs = frame.index.get_level_values(0)
        names = {"coef": "b", "std_err": "se", "z": "t", "p_value": "p", "lower": "ci95l", "upper": "ci95u"}
        table = frame[list(names)].rename(columns=names).astype("Float64").astype(float)
        one = len(set(outputs)) == 1
        table.index = [str(column) if one else f"{output}: {column}" for output, column in frame.index]
        table.index.name = "Coefficient"
        return table

    @property
    def __maketables_default_stat_keys__(self) -> list[str]:
        """What stands below the coefficients."""
        return ["N", "ll", "aic", "bic"]

    def __maketables_stat__(self, key: str) -> Any:
        """Return a statistic of the fit by the name of its key; None for one that is not known."""
        attribute = {"N": "n_obs_", "ll": "loglik_", "aic": "aic_", "bic": "bic_"}.get(key)
        if attribute is None or (self._penalty > 0 and key in {"aic", "bic"}):
            return None
        value = float(getattr(self, attribute))
        return int(value) if key == "N" and value.is_integer() else value
