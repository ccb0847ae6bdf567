"""How fast a model decodes and trains, and how fast it could."""
