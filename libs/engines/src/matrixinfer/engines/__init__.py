"""What MatrixInfer knows of vLLM, SGLang and llama.cpp."""
