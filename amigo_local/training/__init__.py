"""Memory formulas, QLoRA SFT, checkpoints."""
