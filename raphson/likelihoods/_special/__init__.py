"""Special functions that no library has, or has with too few digits."""
