"""Another device: commands and files over a link, the agent started there, its result brought back."""
