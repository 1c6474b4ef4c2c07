"""A report of a fitted model: checks, figures and how to make it again, from the model's public methods."""
