"""Brings a model onto a volume, verified."""
