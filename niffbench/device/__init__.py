"""Where cases run: the CPU, a CUDA GPU, or a replay of what another machine once measured."""

from niffbench.device.base import Block, Device, Processor, Runner, Usage
from niffbench.device.open import open_device

__all__ = ["Block", "Device", "Processor", "Runner", "Usage", "open_device"]
