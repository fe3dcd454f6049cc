"""The gate: what changed between two runs, two revisions or over a history, and whether it could be seen.

``rules`` (what counts as a change) and ``case_results`` (what a run found of a case) go into ``comparison``, which
gives ``findings``: ``invariants`` those of what every round finds alike, ``latencies`` those of what is noisy.
``baseline`` and ``archive`` find and keep runs, ``trend`` reads them over time. ``checkout`` and ``ab`` measure
two pieces of code in turn, through ``spawned`` processes; ``noise`` says what a machine can detect.
"""
