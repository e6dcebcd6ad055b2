"""PromptLab: write, branch, compare, score."""

from labkit.widgets.prompt_lab.lab import PromptLab as PromptLab
