"""Pairs of prompts for classic tasks."""
