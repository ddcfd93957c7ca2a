"""Steps that change how numbers are stored and computed."""
