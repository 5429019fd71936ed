"""The kinds of version v1alpha1."""
