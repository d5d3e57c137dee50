"""Launchers: run stages on this machine, in this process or in a pool of worker processes."""
