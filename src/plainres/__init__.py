"""plainres: what shortcut connections do to deep networks, on a test bench."""
