"""The editing layer: open a model's graph, find weights and structure, change them, close it again."""
