"""What the curvature structures share."""
