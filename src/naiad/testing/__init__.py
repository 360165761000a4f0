"""Instruments: a scripted engine on the real protocol, and builders of the two exact models."""
