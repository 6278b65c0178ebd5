"""What a run is: its identity, its record on disk, its provenance."""
