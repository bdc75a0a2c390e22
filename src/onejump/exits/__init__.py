"""What an exit predicts at each level (Eq. 3), and what it costs."""
