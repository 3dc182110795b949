"""Inspecting a model: architecture and attention, senses of words, the cost of training."""
