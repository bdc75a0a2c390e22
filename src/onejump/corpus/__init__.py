"""From sources of text to the sampled sentences of a study."""
