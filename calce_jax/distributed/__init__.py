"""Devices and hosts: meshes, partition rules, multi-host synchronisation."""
