"""A rented machine over ssh."""
