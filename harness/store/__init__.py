"""store: addresses and immutable artifacts."""
