"""Which slot learns from which object."""
