"""Mathematics on arrays: no graph, no model, no session."""
