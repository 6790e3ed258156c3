"""Where pairs come from: one file per source."""
