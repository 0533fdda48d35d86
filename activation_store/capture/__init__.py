"""A batch of prompts through a decoder, the wanted rows kept."""
