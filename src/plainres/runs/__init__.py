"""A run: its identity, its record on disk, its provenance."""
