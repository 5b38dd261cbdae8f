"""An IPU on the CPU: the part of PopTorch's interface that the IPU engine uses, with PopTorch's semantics.

The device has copies of its own and data moves only when told to. What real hardware would do wrong without a word is
a SimulatorError here: see compilation.py, streams.py and steps.py. Use this package as if it were the module poptorch.
"""

from __future__ import annotations

from ipu_bert.engines.simulator import optim
from ipu_bert.engines.simulator.errors import SimulatorError
from ipu_bert.engines.simulator.executor import PoplarExecutor, inferenceModel, trainingModel
from ipu_bert.engines.simulator.layout import SimulatedEncoder
from ipu_bert.engines.simulator.options import (
    Attribute,
    AutoStage,
    MatMulSerializationMode,
    Options,
    OutputMode,
    PipelinedExecution,
    ReductionType,
    TensorLocationSettings,
)
from ipu_bert.engines.simulator.trace import (
    Block,
    custom_op,
    identity_loss,
    isRunningOnIpu,
    recomputationCheckpoint,
    serializedMatMul,
)

__all__ = [
    "Attribute",
    "AutoStage",
    "Block",
    "MatMulSerializationMode",
    "Options",
    "OutputMode",
    "PipelinedExecution",
    "PoplarExecutor",
    "ReductionType",
    "SimulatedEncoder",
    "SimulatorError",
    "TensorLocationSettings",
    "custom_op",
    "identity_loss",
    "inferenceModel",
    "isRunningOnIpu",
    "optim",
    "recomputationCheckpoint",
    "serializedMatMul",
    "trainingModel",
]
