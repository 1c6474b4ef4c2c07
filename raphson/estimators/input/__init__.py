"""Arguments of estimators to arrays, or one clear sentence."""
