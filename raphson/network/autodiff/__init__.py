"""Derivatives by automatic differentiation."""
