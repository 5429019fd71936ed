"""The seven kinds: types, defaults, validation, names."""
