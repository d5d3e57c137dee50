"""launchers: where stages run on this machine."""
