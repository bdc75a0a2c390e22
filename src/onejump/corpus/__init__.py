"""From a source of text to sampled sentences."""
