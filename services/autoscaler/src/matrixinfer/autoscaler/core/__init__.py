"""The algorithm as pure functions: time is an argument, nothing is read, nothing is written."""
