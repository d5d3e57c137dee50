"""Figures: plots that take and return matplotlib axes, one idea a file, and the figures that put them together."""
