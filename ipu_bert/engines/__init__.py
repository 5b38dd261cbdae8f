"""How a training step runs and where the weights live."""
