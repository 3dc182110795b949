"""Looking into a model: its shape and attention, word senses, the cost of training a size."""
