"""Where models live and talk: Ollama server, its store on disk, our own library, embedded llama.cpp."""
