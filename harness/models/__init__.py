"""models: weights and forward passes. Import the module you need: planning reads `files` and `flops` without torch."""
