"""Memory: the peak of one warm call above what is resident, in a pass that never times.

The device tells the peak: on a CPU from the allocation events of torch's profiler, which sees buffers inside
operators, on CUDA from the caching allocator, which cuFFT's and cuDNN's workspaces come from. The rest is counted
from tensors: each storage once, whatever views there are of it.
"""

from __future__ import annotations

from dataclasses import replace

from niffbench.device import Device
from niffbench.protocol import Predicted
from niffbench.results import Memory
from niffbench.worker.evaluator import Workload


def measure(
    device: Device, workload: Workload, prediction: Predicted | None, counted: Memory | None = None
) -> Memory:
    """The memory of a workload that has been called before, in bytes.

    ``workspace`` is the peak without what fake tensors could predict of it. ``saved`` is counted from autograd's
    saved tensors, or is, for a compiled forward pass, what stays allocated beside its output.

    Args:
        counted: what another process measured of the same, engines included. On a CPU it is the same again, so it
            is taken over; elsewhere what is counted from tensors is.
    """
    if counted is not None and device.capabilities.host:
        return counted
    if counted is not None:
        usage = device.usage(workload)
        return replace(
            counted,
            peak=usage.peak,
            workspace=None if counted.predicted is None else usage.peak - counted.predicted,
            reserved=usage.reserved,
            device_delta=usage.device_delta,
        )
    footprint = workload.footprint()
    usage = device.usage(workload)
    saved, problem = footprint.saved, workload.case.problem
    if saved is None and problem.mode == "forward":
        saved = max(0, usage.kept - footprint.output)
    predicted = None if prediction is None else prediction.peak
    return Memory(
        peak=usage.peak,
        resident=footprint.resident,
        output=footprint.output,
        kept=footprint.kept,
        saved=saved,
        predicted=predicted,
        workspace=None if predicted is None else usage.peak - predicted,
        reserved=usage.reserved,
        device_delta=usage.device_delta,
    )
