"""What trained networks reveal."""
