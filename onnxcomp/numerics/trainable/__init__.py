"""What weights are made of while they are trained: the arrays that are free, and the gradients that reach these."""
