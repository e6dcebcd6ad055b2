"""PromptLab: write, branch, compare, score."""
