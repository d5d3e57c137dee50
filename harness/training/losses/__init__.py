"""losses: what a step minimises, one objective for every recipe."""
