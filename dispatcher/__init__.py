"""A leader-elected background-job dispatcher on PostgreSQL."""
