"""What a model consists of, and what its profile belongs to."""
