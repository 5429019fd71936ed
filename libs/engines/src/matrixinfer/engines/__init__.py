"""What MatrixInfer knows of vLLM, SGLang and llama.cpp.

Owns: command lines, ports, paths, start-up budgets, metric names with all their historical aliases, the reading of
an engine's /metrics, the adapter endpoints. Everything here is a value or a pure function.
Refuses: I/O, clocks, Kubernetes objects. Callers send the requests and build the pods.
"""
