"""Ten lines of a stranger's code: replace a model's linear layers, train a step, save and load."""

import time

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sparse_ops import native, sparsify


def feed_forward():
    return nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024))


def step_seconds(model, x):
    optimizer, seconds = torch.optim.AdamW(model.parameters()), []
    for _ in range(5):
        start = time.perf_counter()
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


dense, model = feed_forward(), feed_forward()
layers = sparsify(model, block_size=16, sparsity=0.9)
x = torch.randn(1024, 1024)
seconds = step_seconds(dense, x), step_seconds(model, x)
save_file(model.state_dict(), "model.safetensors")
loaded = feed_forward()
sparsify(loaded, block_size=16, sparsity=0.9)  # other positions, until the saved ones are loaded
loaded.load_state_dict(load_file("model.safetensors"))
assert torch.equal(loaded(x), model(x))
kernel = f"native, {native.level()}" if native.available() else "plain torch"
print(f"a step: dense {seconds[0]:.3f} s, sparse {seconds[1]:.3f} s ({kernel})")
assert seconds[1] < seconds[0]
