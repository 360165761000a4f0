"""Compile the engine for the machine it will run on. Standard library only.

This room runs before anything is installed: `PYTHONPATH=src python -m naiad.setup.engine`.
"""
