"""figures: plots that take and return matplotlib axes."""
