"""Defaults and validates the seven kinds."""
