"""BERT pre-training with dynamic block sparsity."""
