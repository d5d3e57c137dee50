"""Synthesis: a teacher generates prompts and answers from human rows in its context; filters decide which are kept."""
