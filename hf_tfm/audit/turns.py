"""Finds the turns of a conversation in a row of tokens, by the texts that a chat template puts around contents."""
