"""Generators that write what `make verify` compares."""
