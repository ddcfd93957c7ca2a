"""Steps that take parts of a network away."""
