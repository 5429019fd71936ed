"""A local Kubernetes with one command."""
