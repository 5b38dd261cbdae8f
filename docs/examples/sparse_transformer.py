"""Train transformers' Llama with a tenth of its linear weights, which move while it learns (RigL), in thirty lines."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sparse_ops import keep_freed_memory, sparsify
from sparse_ops.dynsparse.gradients import record_gradient_blocks
from sparse_ops.dynsparse.grow import GROW_RULES
from sparse_ops.dynsparse.moments import moments_of
from sparse_ops.dynsparse.schedules import cosine
from sparse_ops.dynsparse.updater import PatternUpdater, UpdatePlan
from sparse_ops.norms import l1

keep_freed_memory()
torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=32, **sizes))
layers = sparsify(model, block_size=4, sparsity=0.9, include=["model.layers.*"])
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
STEPS, rule = 80, GROW_RULES["gradient"]
rules = {"norm": l1, "growth": rule, "allow_removed": False, "seed": 0}
plan = UpdatePlan(updates=8, total_steps=STEPS, pruning_ratio=0.3, schedule=cosine, start=0.0, stop=0.75, **rules)
updater = PatternUpdater(plan)
updater.track(layers)

losses = []
for step in range(1, STEPS + 1):
    tokens = (torch.randint(64, (32, 1)) + 7 * torch.arange(16)) % 64  # each token is the one before and seven
    with record_gradient_blocks(layers, updater.gradient_counts(step), l1) as gradients:
        loss = model(tokens, labels=tokens).loss
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    if updater.is_due(step):
        report = updater.update(layers, moments_of(optimizer, layers), step, gradients)
        print(f"step {step}: loss {loss:.2f}, {report.as_record()['moved']} blocks moved")
