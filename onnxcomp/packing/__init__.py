"""Models in the fewest bytes: packed by entropy coders, exact to the bit, for downloads and updates."""
