"""The samples that a model is trained on, and what the original gives for them."""
