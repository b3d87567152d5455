"""A web app that searches uploaded videos, for a few users; needs the extra `[web]`."""
