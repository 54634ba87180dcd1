"""Models, tokenizer, loss and weights."""
