"""Likelihoods made of another one, of a function or of a family of ``torch.distributions``."""
