"""QuantLab: one prompt in two precisions of a model."""

from labkit.widgets.quant_lab.lab import QuantLab as QuantLab
