"""What each row achieved of what its machine can do: FLOP/s, bytes/s, and how far it is from its floor."""

from __future__ import annotations

from niffbench.cost.roofline import bandwidth, ceiling, floor_time
from niffbench.report.digest import Digest, Row


def achieved(row: Row, digest: Digest) -> tuple[float, float] | None:
    """FLOP/s and bytes/s of the form's own traffic, or None where latency or cost is unknown."""
    latency = row.value(f"latency_{digest.regime}")
    if not latency or row.cost is None or row.cost.bytes_own is None:
        return None
    return row.cost.closed / latency, row.cost.bytes_own / latency


def over_floor(row: Row, digest: Digest) -> float | None:
    """Latency over the least time of its FLOPs and least traffic at this machine's measured rates.

    Traffic takes as long as a copy of as many bytes, which a cache may hold; ``cold``, as long as from memory.
    """
    ceilings = digest.ceilings
    latency = row.value(f"latency_{digest.regime}")
    if not latency or row.cost is None or ceilings is None:
        return None
    try:
        peak = ceiling(ceilings.matmul, row.case.problem.precision)
    except KeyError:
        return None
    traffic = row.cost.bytes_floor
    rate = ceilings.copy_bandwidth if digest.regime == "cold" else bandwidth(ceilings, traffic)
    floor = floor_time(row.cost.closed, traffic, peak, rate)
    return latency / floor if floor else None
