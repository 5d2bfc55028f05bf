"""Recipes: short pieces of code to copy, each beside the usual way of doing the same, run and timed."""
