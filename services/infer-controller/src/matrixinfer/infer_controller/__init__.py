"""Turns a ModelInfer into groups of pods."""
