"""GGUF to safetensors and back, LoRA merge, quantize; one file per architecture family."""
