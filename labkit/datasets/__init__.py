"""Pairs of prompts for classic tasks, and items with a right answer: published sets and a small one of our own."""
