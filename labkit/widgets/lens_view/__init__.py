"""LensView: the lens as a map of words, and direct attribution."""

from labkit.widgets.lens_view.view import LensView as LensView
