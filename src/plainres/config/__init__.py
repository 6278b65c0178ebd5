"""The configuration: its options, its schema, and the objects made of it."""
