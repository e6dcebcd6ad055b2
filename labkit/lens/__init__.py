"""The residual stream read as if at the last layer, and split over what wrote it."""
