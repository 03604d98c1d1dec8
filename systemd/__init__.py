"""The units and what goes with them, for people who installed the package and have no checkout."""
