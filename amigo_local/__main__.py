"""`python -m amigo_local`: the command line, where its script isn't on the path."""

from __future__ import annotations

from amigo_local.cli.main import main

if __name__ == "__main__":
    main()
