"""Builders, strategies and an in-memory API server for tests."""
