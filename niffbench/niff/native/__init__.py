"""The depthwise convolution as one C kernel, compiled for this CPU when it is first used.

It needs a C compiler (``cc``, or what the environment's ``CC`` names), as ``torch.compile`` does on a CPU;
without one everything else works, and :func:`niffbench.niff.native.build.unavailable` says what is missing.
"""
