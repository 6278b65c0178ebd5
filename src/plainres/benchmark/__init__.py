"""Benchmarks of the training speed on this machine."""
