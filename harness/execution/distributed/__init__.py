"""Distributed: the processes of one job that train one model together."""
