"""teachers: where a teacher's signal comes from."""
