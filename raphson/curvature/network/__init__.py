"""Networks: the objective and its derivatives, whole or layer by layer."""
