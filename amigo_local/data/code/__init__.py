"""Reading code: trees of files, what stands alone, examples, contexts, bugs and git history."""
