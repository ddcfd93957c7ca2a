"""What a search returns: the folder, its manifest and its files."""
