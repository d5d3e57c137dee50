"""Torture of the store: kills and storage faults at every operation, random kills, races.

`test_crash_points.py` and `test_storage_faults.py` take a thin slice in the default suite; `make torture` takes all.
"""
