"""Fuzzing: inputs drawn at random until the time is up; each ends in rows or in one sentence."""
