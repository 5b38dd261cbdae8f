"""Other people's models in, ours out: folders and names of the Hugging Face hub."""
