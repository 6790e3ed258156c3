"""How a run proceeds: workspace, fingerprint, journal, runner, worker. Knows stages only by contract."""
