"""What of the outputs is compared, and as what: padding, copies of inputs, labels, scores."""
