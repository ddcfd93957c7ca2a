"""Steps that write a layer as several smaller ones."""
