"""Statistics of benchmarks: pure numpy and scipy, one noun a module.

``intervals`` (medians and ratios), ``series`` (one raw series of samples), ``exponents``, ``crossovers``,
``decision`` (has it changed?), ``power`` (could it have been seen?), ``changepoints``, ``simulation``
and ``refining`` (are the error rates what they are said to be?); all rest on ``contrasts``.
"""
