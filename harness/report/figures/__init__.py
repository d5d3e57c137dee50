"""Figures: plots that take and return matplotlib axes, one idea a file, and the sheets that put them together."""
