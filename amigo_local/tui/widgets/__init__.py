"""Small widgets by concern: they are given values and emit messages."""
