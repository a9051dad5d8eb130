"""The papers' claims, tried at a size for a laptop."""
