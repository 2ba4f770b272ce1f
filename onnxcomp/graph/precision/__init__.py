"""Which nodes compute in a shorter float type, and the Casts between them and the rest."""
