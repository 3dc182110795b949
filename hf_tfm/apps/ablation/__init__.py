"""Ablations: grids of recipes and seeds, what they measure, and the report."""
