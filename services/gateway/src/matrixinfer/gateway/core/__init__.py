"""Decisions of the gateway as pure functions over plain values: no I/O, no clock, no chance of their own."""
