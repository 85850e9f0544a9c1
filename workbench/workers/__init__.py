"""Processes that compute for a server: a pool of them, and what runs in each."""
