"""Comparisons with other systems, and profiles, run by hand."""
