"""Launching of sweeps and of runs on several devices."""
