"""plan: from settings to a graph of addressed stages, without running anything."""
