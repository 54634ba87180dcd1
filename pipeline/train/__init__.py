"""Contrastive pretraining with exact gradient caching."""
