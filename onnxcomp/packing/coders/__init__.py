"""Arrays as few bytes, and back."""
