"""Meshes, partition rules, names of parameters, and synchronisation of hosts."""
