"""States that a model hands to itself: found by name and flow, carried from step to step."""
