"""Synthesis: new prompts and answers that a teacher generates from human rows in its context, asked for, filtered,
written.
"""
