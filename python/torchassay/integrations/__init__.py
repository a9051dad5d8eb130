"""Adapters for other people's trainers and engines; each imports its own library and nothing else does."""
