"""What can be counted before a run: weights, FLOPs, bytes, placement on IPUs, the dry run."""
