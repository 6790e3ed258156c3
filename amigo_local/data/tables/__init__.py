"""Tables: files read row by row, and what their columns mean."""
