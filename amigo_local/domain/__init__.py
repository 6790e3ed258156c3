"""The vocabulary every other room speaks. Pure: imports nothing of ours."""
