"""What can be chosen, and the objects made of it."""
