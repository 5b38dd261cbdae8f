"""Writes out the placement that `ipu.layers_per_ipu: auto` stands for: after it a config has numbers only."""

from __future__ import annotations

from typing import Collection

from ipu_bert.config.give_way import shares
from ipu_bert.settings import Config
from ipu_bert.sizes.automatic import choose


def place_automatically(config: Config, users: Collection[str]) -> list[str]:
    """Put the chosen placement into a config that is checked else; returns what is wrong where there is none.

    What the users wrote of it stays.
    """
    ipu, train = config.ipu, config.train
    fixed = set(users) if ipu.gradient_accumulation else set(users) - {"ipu.gradient_accumulation"}  # 0: as needed
    try:
        choice = choose(config, fixed)
    except ValueError as error:
        return [str(error)]
    best = choice.best
    ipu.layers_per_ipu, ipu.replicas = list(best.layers), best.replicas
    ipu.gradient_accumulation, train.micro_batch_size = best.gradient_accumulation, best.micro_batch_size
    if len(ipu.available_memory) > 1 and "ipu.available_memory" not in users:
        ipu.available_memory = shares(ipu.available_memory, len(best.layers))
    config.chosen = list(choice.lines)
    return []
