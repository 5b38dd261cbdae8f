"""Benchmarks of the products: ours and the peers', alternating."""
