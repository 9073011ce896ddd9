"""Deterministic simulation of whole clusters: the shipped protocol machines under faults drawn from one integer seed.

``python tests/simulator/simulate.py --seeds 1000`` runs schedules; a seed that fails is run again, with its trace, by
``--replay SEED --trace``, and made smaller by ``--minimise SEED``.
"""
