"""The residual stream read as if it were the last, and split over what wrote it."""
