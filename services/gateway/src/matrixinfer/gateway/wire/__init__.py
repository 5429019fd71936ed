"""Bytes in and out: the inlet that clients reach, and the connections to engines."""
