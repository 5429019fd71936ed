"""Rules that a schema cannot say: relations between fields, one module for each group of kinds.

Each function takes an object that fits its schema, and yields errors (nothing could ever make it right) or notices
(legal, but hardly what was meant).
"""
