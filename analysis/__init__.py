"""Analysis: plots that take a summary and axes, and return the axes; notebooks come here too.

`harness/results/table.py` makes the summary; nothing here computes a number.
"""
