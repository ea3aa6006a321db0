"""Files <-> models: where a checkpoint comes from, what its tensors are called, how they get into a model and back."""
