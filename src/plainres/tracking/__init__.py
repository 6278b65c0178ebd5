"""Loggers of the curves of a run."""
