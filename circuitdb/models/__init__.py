"""Models: named specs become loaded models with a masked forward."""
