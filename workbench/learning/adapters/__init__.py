"""Adapters: networks that others have trained, as denoisers; one file a format."""
