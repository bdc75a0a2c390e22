"""What an exit predicts at each level (Eq. 3), measured against the full model."""
