"""From the open web to a balanced, versioned corpus of image-text pairs."""
