"""What is measured and told without a rewritten model: benchmarks, comparisons, plans."""
