"""niffbench measures what NIFF's FFT convolutions cost against spatial convolutions.

Importing the package loads neither torch nor pandas; take what you need from its rooms
(``niffbench.niff`` for the layers, ``niffbench.results`` to read a run).
"""

__version__ = "0.1.0"
