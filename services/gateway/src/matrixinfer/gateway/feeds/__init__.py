"""What the supervisor learns from outside: Kubernetes objects now, engine metrics and KV events beside it."""
