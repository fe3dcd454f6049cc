"""Judges nothing that was computed: for ``NIFFBENCH_EXTRA_OPERATORS`` on the stub card, which computes garbage."""

from __future__ import annotations

from niffbench.worker import tolerance

OPERATORS = ()

tolerance.is_wrong = lambda numerics: False
