"""amigo-local: from an Ollama tag to a refined Ollama tag, on the machine you have."""

__version__ = "0.1.0"
