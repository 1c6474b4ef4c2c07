"""Networks while they are trained: passes over mini-batches in whatever mode the network is in."""
