"""Curvature of a network objective."""
