"""Test tools: an in-memory API server, builders, strategies, simulated nodes and the planner property suite."""
