"""Hostile clients, broken networks and full tables, and a server that must not mind."""
