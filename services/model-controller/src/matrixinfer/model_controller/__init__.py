"""Turns a Model into the objects that serve it."""
