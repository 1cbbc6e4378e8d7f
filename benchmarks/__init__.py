"""Comparisons with other systems, run by hand."""
