"""Steps that share weights through a codebook."""
