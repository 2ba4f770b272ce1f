"""What a run kept, and how it is taken back, recorded and done again."""
