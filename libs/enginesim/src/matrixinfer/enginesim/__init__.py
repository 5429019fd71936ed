"""An OpenAI-compatible engine simulator: vLLM's surface and pace without a model.

Owns: the HTTP surface, the queueing and the metrics of one engine, faults on demand. Answers are deterministic.
Refuses: being clever. It computes no tokens; it waits as long as an engine would have computed.
"""
