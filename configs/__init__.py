"""Recipes: one file each, whose docstring holds the command and the result to expect."""
