"""One file per architecture family; the filename is GGUF's `general.architecture`."""
