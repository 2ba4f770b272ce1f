"""What inner tensors hold while samples run through a model."""
