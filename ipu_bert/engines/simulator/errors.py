"""What the simulator refuses. Real hardware would often go on silently with wrong numbers."""

from __future__ import annotations


class SimulatorError(RuntimeError):
    """The program did something that PopTorch forbids, or that would lose data without a word."""
