"""Tests: unit/ without a database, db/ on a real PostgreSQL, system/ with real processes and faults."""
