"""The methods of the clients by area, each written for blocking and for async code as one line on an operation."""
