"""The sparse layer on IPUs: PopTorch's operation, popsparse's layout, and how the native library is built."""
