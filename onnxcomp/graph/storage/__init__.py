"""What a model takes in the file: decoders of compact weights, stripped texts, sizes."""
