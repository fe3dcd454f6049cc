"""The gate: what changed between two runs, two revisions or over a history, and whether it could be seen.

``rules`` (what counts as a change, and which is accepted) and ``case_results`` (what runs found of a case) go into
``comparison``, which gives ``findings``: ``invariants`` those of what every round finds alike, ``latencies`` those
of what is noisy. ``history`` keeps runs and finds those before a run, ``trend`` follows them over time.
``checkout`` and ``ab`` measure two pieces of code in turn; ``noise`` says what a machine can detect,
``simulation`` what a rule can.
"""
