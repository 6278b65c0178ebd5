"""Child processes, stop signals and ranks."""
