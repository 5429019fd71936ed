"""The process chassis every service runs in."""
