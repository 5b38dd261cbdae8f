"""The engine for IPUs: PopTorch's options, the model in stages, and state between host and device."""
