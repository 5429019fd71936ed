"""An OpenAI-compatible engine simulator."""
