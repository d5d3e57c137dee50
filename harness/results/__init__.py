"""results: from a frozen plan and a store to numbers."""
