"""Launchers: where stages run on this machine: in this process, or in a pool of workers."""
