"""Experiments on shortcut connections in deep networks."""
