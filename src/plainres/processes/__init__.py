"""Processes, signals, ranks."""
