"""Which endpoint of a server takes a request: filters, scorers in [0, 1] and pickers, composed by a profile."""
