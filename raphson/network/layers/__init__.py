"""Layer calls of one forward pass, and closed forms for feed-forward networks."""
