"""Predictions of trained networks, and measurements on them."""
