"""One typed function for each statement in sql/queries, grouped by who uses them."""
