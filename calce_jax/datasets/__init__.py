"""Annotated videos made into the tables that training reads; published files fetched."""
