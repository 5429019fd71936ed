"""The reconciliation library: observe, plan, apply, on any API server and for any kind."""
