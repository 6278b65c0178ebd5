"""The configuration: its groups and options, its schema, and the objects built from it."""
