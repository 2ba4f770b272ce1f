"""Steps along gradients, until samples that are held back show no gain."""
