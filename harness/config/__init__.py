"""config: what a person may set, typed and refused early."""
