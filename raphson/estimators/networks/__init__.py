"""Networks behind scikit-learn's interface."""
