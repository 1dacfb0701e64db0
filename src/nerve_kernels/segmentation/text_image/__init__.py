"""Where G comes from: embeddings of places and of names in one space."""
