"""What is known of a graph's tensors before it runs: element types, shapes, values of shape vectors."""
