"""Energy of a call, where the device counts it: the whole card's, idle power included."""

from __future__ import annotations

from math import isfinite

from niffbench.device import Device, Runner

LEAST_TIME = 0.35
"""Seconds of calls between two readings."""

MOST_TIME = 0.5
"""Seconds of calls after which no further one is begun."""

STEP_TIME = 0.15
"""The longest that a step of the counter is waited for; NVML's steps every 20 to 100 ms (100 ms on an H200)."""

_POLL, _BLOCK, _LAST_BLOCK = 1e-3, 0.05, 5e-3


def per_call(device: Device, runner: Runner) -> float | None:
    """Joules of one warm call, from step to step of the counter; None without a counter that moves.

    Calls are eager, back to back, and everything is counted by the wall: where launches take longer than the
    kernels (most layers at batch 1), the figure holds what the card uses while it waits for them, as it does for
    whoever makes such calls. It takes some 0.6 s, or two calls where one takes longer.
    """
    joules = _next_step(device)
    if joules is None:
        return None
    begun, calls = device.clock(), 0

    def call_for(seconds: float) -> float:
        """Call for about so long; returns the seconds since the first step."""
        nonlocal calls
        count = max(1, int(seconds * calls / max(device.clock() - begun, 1e-9))) if calls else 1
        device.timed(runner, count)
        calls += count
        return device.clock() - begun

    spent = call_for(0.0)
    while spent < LEAST_TIME:
        spent = call_for(min(_BLOCK, LEAST_TIME - spent))
    at_last = after = device.joules()
    while after == at_last and spent * (calls + 1) / calls < MOST_TIME:
        spent = call_for(_LAST_BLOCK)
        after = device.joules()
    if after == at_last:  # calls are long: idle until the next step rather than count less than was used
        after = _next_step(device)
    used = None if after is None else after - joules
    return used / calls if used is not None and isfinite(used) and used > 0 else None


def _next_step(device: Device) -> float | None:
    """The counter just after it has moved; None without one that moves."""
    first = device.joules()
    given_up = device.clock() + STEP_TIME
    while first is not None and isfinite(first) and device.clock() < given_up:
        device.rest(_POLL)
        if (joules := device.joules()) != first:
            return joules
    return None
