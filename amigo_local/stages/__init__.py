"""One file per step of the loop, named as its CLI verb."""
