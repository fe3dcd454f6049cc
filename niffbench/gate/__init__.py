"""Regressions: what changed between two runs, two revisions or over a history, and whether it could be seen.

``rules`` (what counts as a change) and ``sides`` (what a run knows of a case) go into ``comparison``, which gives
``findings``; ``markdown``, ``junit`` and ``table`` say them. ``baseline`` and ``archive`` find and keep runs,
``trend`` reads them over time. ``checkout``, ``pairs`` and ``arms`` make A/B runs; ``noise`` says what a machine
can detect.
"""
