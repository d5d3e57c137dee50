"""data: rows."""
