"""Where models come from: one module per kind of source, each an implementation of `source.Source`."""
