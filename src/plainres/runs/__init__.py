"""Runs: their identity, their record on disk, and their provenance."""
