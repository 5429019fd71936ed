"""Decisions of the downloader, as pure functions of plain values: no I/O, no clock."""
