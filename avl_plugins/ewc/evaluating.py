"""A model as the Fisher looks at it: in eval mode, uncompiled, and afterwards as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, gradients on, and everything as it was afterwards.

    What `torch.compile` has compiled runs uncompiled: compiled code may not call the hooks of its layers.
    """
    modes = [(module, module.training) for module in model.modules()]
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    compiling = "torch._dynamo" in sys.modules  # else nothing is compiled, and importing it takes a second
    model.eval()
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.enable_grad(),
            # cuDNN's recurrent layers have no backward pass in eval mode.
            torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not recurrent),
            torch.compiler.set_stance("force_eager") if compiling else nullcontext(),
        ):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def refuse_batch_statistics(model: nn.Module) -> None:
    """Raise ValueError for layers by which the outputs of a sample depend on the others in its batch."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) has no running statistics, so its outputs depend on the "
                "whole batch and a single sample has no gradient of its own: build it with track_running_stats=True"
            )
