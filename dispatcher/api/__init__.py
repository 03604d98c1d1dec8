"""The HTTP API: stateless, any number of processes of it beside any number of replicas. Needs the extra `api`."""
