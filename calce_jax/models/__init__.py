"""The sub-models, each written for one device."""
