"""Text to batches: documents, token files, masked sentence pairs."""
