"""synthesis: rows that a teacher writes after seeing human ones."""
