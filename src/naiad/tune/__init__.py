"""Measuring which settings suit this machine, and keeping what was found."""
