"""How well a model does, and how far an attack got."""
