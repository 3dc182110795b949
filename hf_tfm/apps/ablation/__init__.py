"""Ablations: grids of recipes and seeds, their runs, measures and report. Read `grid.py` first."""
