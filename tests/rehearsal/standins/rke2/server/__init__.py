"""Stands in for an RKE2 server: supervisor, API server, controllers, and the download servers."""
