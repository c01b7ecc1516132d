"""The jobs that look for poisoned pairs in a data set, and that train again without them."""
