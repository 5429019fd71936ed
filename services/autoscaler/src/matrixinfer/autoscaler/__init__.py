"""Decides how many replicas a target has."""
