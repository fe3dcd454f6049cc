"""Energy of a call, where the device counts it: the whole card's, idle power included."""

from __future__ import annotations

from math import isfinite, nan

from niffbench.device import Device, Runner

LEAST_TIME = 0.5
"""Seconds of calls between two readings: NVML's counter steps every 20 to 100 ms."""


def per_call(device: Device, runner: Runner, latency: float) -> float | None:
    """Joules of one warm call, over back-to-back calls; None without a counter that moves, or a usable latency.

    ``latency``: seconds a call is known to take, to choose how many calls are made.
    """
    before = device.joules()
    if before is None or not (isfinite(latency) and latency > 0):
        return None
    calls, spent = 0, 0.0
    while spent < LEAST_TIME:
        count = max(1, round((LEAST_TIME - spent) / latency))
        seconds, _ = device.timed(runner, count)
        spent += max(seconds, latency * count)
        calls += count
    after = device.joules()
    used = nan if after is None else after - before
    return used / calls if isfinite(used) and used > 0 else None
