"""Arrays seen another way: im2col, one row for each channel."""
