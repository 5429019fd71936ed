"""HTTP as this service needs it: long bodies into our own buffers, on kept connections, a deadline on each wait."""
