"""Training of one run, from its configuration to its result."""
