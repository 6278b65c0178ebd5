"""The speed of training on this machine."""
