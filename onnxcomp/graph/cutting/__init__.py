"""Units of dependency groups: what they cost, which are worth least, and weights that are blind to them."""
