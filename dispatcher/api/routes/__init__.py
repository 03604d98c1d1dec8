"""The routes, a file an area. Each takes what it is given apart, asks the database and answers; nothing is kept."""
